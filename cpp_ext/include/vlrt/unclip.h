// The ancestral rule of unCLIP.
#pragma once

#include "vlrt/ddpm.h"

namespace vlrt {

// diffusers' UnCLIPScheduler (after Karlo): timesteps from the last to the first in real strides, and where
// neighbours are visited the schedule's own variances.
class UnclipRule : public PosteriorRule {
 public:
  UnclipRule(const NoiseSchedule& schedule, const UpdateOptions& options);
};

}  // namespace vlrt
