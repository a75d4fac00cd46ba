// Functions compiled for several generations of a processor.
#pragma once

// The loader picks the widest variant the processor has, by its features and not its maker; the baseline
// stays portable. Only glibc has such resolvers, and they run before a sanitizer is ready.
#if !defined(__GNUC__) || defined(__clang__) || !defined(__x86_64__) || !defined(__GLIBC__) || \
    defined(__SANITIZE_ADDRESS__)
#define VLRT_CLONES
#elif __GNUC__ >= 12
#define VLRT_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define VLRT_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#endif
