// Proves a program before it runs. What is proved: every worker reaches the end of its queue under
// any fair schedule; whatever two tiles touch both, one of them writing, happens in the defining
// order (by queues and events, transitively); nothing is read that this step did not write before,
// nor what another buffer's bytes have overwritten; the defining order is the network's, and every
// phase of it whole (check_network.h); every unit of every weight is read once; no worker has more
// than its share. What a tile computes is not: `tessera compare` is for that.
#pragma once

#include <optional>
#include <string>

#include "plan/program.h"

namespace tessera {

// The bound on work: in every phase the worker with most bytes has at most kBalanceMax of the mean,
// or at most one granule more than the mean (what cannot be cut cannot be balanced); over the whole
// program at most kBalanceMax, or a granule of each kind more. For every number of live slots.
inline constexpr double kBalanceMax = 1.03;

// The first fact that does not hold, in a sentence with tiles and workers; none if all do.
std::optional<std::string> check(const Program& program);

}  // namespace tessera
