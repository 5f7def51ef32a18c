#include "runtime/gpu/plans.h"

#include "base/error.h"
#include "runtime/gpu/model.h"

namespace tessera::gpu {
namespace {

PlanRequest request(const DeviceWeights& weights, uint32_t context, uint32_t rows) {
    PlanRequest r;
    r.shape = weights.shape;
    r.ranks = weights.ranks;
    r.workers = 1;
    r.rows = rows;
    r.context = context;
    return r;
}

PlanRequest draft_request(const DeviceWeights& drafter, uint32_t context, uint32_t rows) {
    const DrafterShape& shape = *drafter.drafter;
    if (shape.block > kRowsMax)
        fail("GPU: the drafter's block has {} rows; the GPU's steps have {}", shape.block,
             kRowsMax);
    // A block may reach beyond the end.
    PlanRequest r = request(drafter, context + shape.block, rows);
    r.draft = {.context_rows = kRowsMax, .taps = static_cast<uint32_t>(shape.taps.size())};
    return r;
}

}  // namespace

Program target_program(const DeviceWeights& weights, uint32_t context,
                       const DeviceWeights* drafter) {
    PlanRequest r = request(weights, context, kRowsMax);
    if (drafter != nullptr) r.taps = drafter->drafter->taps;
    return plan(r);
}

Program block_program(const DeviceWeights& drafter, uint32_t context) {
    return plan(draft_request(drafter, context, drafter.drafter->block));
}

Program context_program(const DeviceWeights& drafter, uint32_t context) {
    return plan(draft_request(drafter, context, 0));
}

}  // namespace tessera::gpu
