"""`vlrt run`: one subcommand a task."""

from __future__ import annotations

import os

from vlrt.commands.lazy import LazyGroup

# NumPy's OpenBLAS starts a thread per processor as it is imported, so this must be said before. Engines have pools of
# their own, and what a task multiplies in NumPy is small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

run = LazyGroup(
    {
        "caption": ("vlrt.commands.run_caption:caption", "Say what is on photographs."),
        "answer": ("vlrt.commands.run_answer:answer", "Answer a question about photographs."),
        "match": ("vlrt.commands.run_match:match", "Score sentences against a photograph."),
        "search": ("vlrt.commands.run_search:search", "Find the photographs a sentence describes."),
        "classify": ("vlrt.commands.run_classify:classify", "Choose among labels, without training."),
        "embed": ("vlrt.commands.run_embed:embed", "Vectors of photographs and sentences, and their similarities."),
        "tokenize": ("vlrt.commands.run_tokenize:tokenize", "Turn photographs into grids of codes."),
        "detokenize": ("vlrt.commands.run_detokenize:detokenize", "Turn a grid of codes into a picture."),
        "reconstruct": (
            "vlrt.commands.run_reconstruct:reconstruct",
            "Turn photographs into codes and back; measure the loss.",
        ),
        "generate": ("vlrt.commands.run_generate:generate", "Paint what words say."),
        "edit": ("vlrt.commands.run_edit:edit", "Paint over a photograph as words say."),
        "inpaint": ("vlrt.commands.run_inpaint:inpaint", "Paint the masked part of a photograph anew."),
        "variations": ("vlrt.commands.run_variations:variations", "Paint further pictures of what a photograph shows."),
        "interpolate": ("vlrt.commands.run_interpolate:interpolate", "Paint the way from one photograph to another."),
        "upscale": ("vlrt.commands.run_upscale:upscale", "Enlarge a photograph by painting its details."),
    },
    name="run",
    help="Run a task on photographs, or paint pictures.",
)
