#include "runtime/gpu/machine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "base/check.h"
#include "plan/check.h"
#include "runtime/execute.h"

namespace tessera::gpu {
namespace {

// As Distress in primitives.cuh, which only CUDA reads.
struct Note {
    uint32_t awaited;
    uint32_t thread;
    uint64_t needed, seen;
};
constexpr const char* kAwaited[] = {"nothing",
                                    "the barrier of all blocks",
                                    "a page of weights",
                                    "an empty place for a page",
                                    "another warp of the block",
                                    "the end of a round",
                                    "the rows' experts"};

std::vector<float> angles_of(const Shape& s, uint32_t positions) {
    std::vector<float> frequencies = rotary_frequencies(s.full);
    const std::vector<float> sliding = rotary_frequencies(s.sliding);
    frequencies.insert(frequencies.end(), sliding.begin(), sliding.end());
    std::vector<float> angles;
    angles.reserve(size_t{positions} * frequencies.size() * 2);
    for (uint32_t position = 0; position < positions; ++position) {
        for (const float frequency : frequencies) {
            const float turned = static_cast<float>(position) * frequency;
            angles.push_back(std::cos(turned));
            angles.push_back(std::sin(turned));
        }
    }
    return angles;
}

}  // namespace

Walker::Walker(const Program& program, const DeviceWeights& weights, const Options& options,
               cudaStream_t stream)
    : options_(options),
      stream_(stream),
      cache_(weights.shape, weights.ranks, program.request.context),
      blocks_(find_card().multiprocessors),
      list_(phases_of(program, weights, cache_, blocks_)),
      distress_(blocks_),
      input_(1),
      step_(sizeof(Step)) {
    const auto fault = tessera::check(program);
    if (fault) fmt::print(stderr, "{}\n", *fault);
    CHECK(!fault);
    const PlanRequest& r = program.request;
    const Shape& s = weights.shape;
    Network& n = network_;
    n.hidden = s.hidden;
    n.vocab = weights.vocab.count();
    n.experts = s.experts;
    n.per_token = s.experts_per_token;
    n.epsilon = s.norm_epsilon;
    n.value_scale = s.value_scale;
    n.routed_scale = s.routed_scale;
    n.normalize_top_k = s.normalize_top_k;
    n.draft = r.draft.has_value();
    n.full = heads_of(s.full, r.ranks, 0, r.context);
    n.sliding = heads_of(s.sliding, r.ranks, s.full.rotary_dims, r.context);
    n.embedding = reinterpret_cast<const uint16_t*>(weights.embedding);
    n.mask = reinterpret_cast<const uint16_t*>(weights.mask);
    n.ranks = r.ranks;
    n.share = options.loop_back ? 1.0f / static_cast<float>(r.ranks) : 1.0f;
    CHECK(r.ranks == 1 || options.loop_back);
    n.part_chunks = list_.part_chunks;
    n.distress = distress_.data();

    const uint32_t available = find_card().shared_bytes;
    n.shared = lay_out(list_.needs, available);
    check_device(options_.kernel->prepare(available), "loading the kernel");

    const std::vector<float> angles = angles_of(s, r.context);
    n.angle_columns = s.full.rotary_dims + s.sliding.rotary_dims;
    angles_ = DeviceMemory(angles.size() * sizeof(float));
    check_device(cudaMemcpy(angles_.data(), angles.data(), angles_.bytes(), cudaMemcpyHostToDevice),
                 "copying angles");
    n.angles = reinterpret_cast<const float*>(angles_.data());

    take_buffers(s, r);
    phases_ = DeviceMemory(list_.phases.size() * sizeof(Phase));
    check_device(
        cudaMemcpy(phases_.data(), list_.phases.data(), phases_.bytes(), cudaMemcpyHostToDevice),
        "copying phases");
    if (options.stamps) {
        stamps_ = DeviceMemory(list_.phases.size() * blocks_ * sizeof(Stamp));
        stamps_.clear();
        n.stamps = reinterpret_cast<Stamp*>(stamps_.data());
    }
    for (size_t i = 1; i < list_.phases.size(); ++i) barriers_ += list_.phases[i].barrier;
    if (options.path == Path::graph) capture();
    check_device(cudaDeviceSynchronize(), "preparing");
}

Walker::~Walker() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
}

void Walker::take_buffers(const Shape& s, const PlanRequest& r) {
    Network& n = network_;
    uint32_t query = 0, mixed = 0;
    for (const Heads* h : {&n.full, &n.sliding}) {
        query = std::max(query, h->heads * h->head_dim);
        mixed = std::max(mixed, h->heads * h->v_head_dim);
    }
    n.gated_columns = padded(std::max(s.dense_width, s.expert_width) / r.ranks, 8);
    uint64_t bytes = 0;
    const auto place = [&](uint64_t size) {
        const uint64_t at = bytes;
        bytes += (size + 255) / 256 * 256;
        return at;
    };
    const uint64_t residual = place(uint64_t{kRowsMax} * s.hidden * 2);
    const uint64_t queries = place(uint64_t{kRowsMax} * query * 2);
    const uint64_t mixes = place(uint64_t{kRowsMax} * mixed * 2);
    const uint64_t gated = place(uint64_t{kRowsMax} * s.experts_per_token * n.gated_columns * 2);
    const uint64_t fused = place(uint64_t{kRowsMax} * s.hidden * 2);
    const uint64_t scores = place(uint64_t{kRowsMax} * s.experts * 4);
    const uint64_t logits = place(uint64_t{kRowsMax} * n.vocab * 4);
    const uint64_t parts = place(list_.part_floats * list_.part_chunks * 4);
    const uint64_t partials = place(list_.partial_floats * 4);
    const uint64_t inbox = place(n.ranks > 1 ? 3ull * n.ranks * kRowsMax * s.hidden * 4 : 0);
    const uint64_t squares = place(n.ranks > 1 ? uint64_t{kRowsMax} * blocks_ * 4 : 0);
    const uint64_t arrivals = place(list_.counters * 4ull);
    const uint64_t barrier = place(8);
    const uint64_t live = place(s.layers * 4ull);
    buffers_ = DeviceMemory(bytes);
    buffers_.clear();
    const auto at = [&]<typename T>(T*& pointer, uint64_t offset) {
        pointer = reinterpret_cast<T*>(buffers_.data() + offset);
    };
    at(n.residual, residual);
    at(n.query, queries);
    at(n.mixed, mixes);
    at(n.gated, gated);
    at(n.fused, fused);
    at(n.scores, scores);
    at(n.logits, logits);
    at(n.parts, parts);
    at(n.partials, partials);
    at(n.inbox, inbox);
    at(n.squares, squares);
    at(n.arrivals, arrivals);
    at(n.barrier, barrier);
    at(n.live, live);
}

// The input, then a kernel for every phase.
void Walker::capture() {
    cudaGraph_t graph = nullptr;
    check_device(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing");
    check_device(
        cudaMemcpyAsync(step_.data(), input_.data(), sizeof(Step), cudaMemcpyHostToDevice, stream_),
        "capturing");
    for (uint32_t i = 0; i < list_.phases.size(); ++i) {
        check_device(options_.kernel->launch(
                         {&network_, device_phases(), i, i + 1,
                          reinterpret_cast<const Step*>(step_.data()), 0, blocks_, false},
                         stream_),
                     "capturing a phase");
    }
    check_device(cudaStreamEndCapture(stream_, &graph), "capturing");
    const cudaError_t result = cudaGraphInstantiate(&graph_, graph, 0);
    cudaGraphDestroy(graph);
    check_device(result, "making a graph");
}

void Walker::launch(const Step& step) {
    CHECK(step.rows <= kRowsMax && step.runs <= kRowsMax);
    // The last launch has read its input: whoever asks for the next has waited for its result.
    *input_.data() = step;
    if (graph_ != nullptr) {
        check(cudaGraphLaunch(graph_, stream_), "launching a graph");
    } else {
        check(cudaMemcpyAsync(step_.data(), input_.data(), sizeof(Step), cudaMemcpyHostToDevice,
                              stream_),
              "copying a step");
        check(options_.kernel->launch(
                  {&network_, device_phases(), 0, static_cast<uint32_t>(list_.phases.size()),
                   reinterpret_cast<const Step*>(step_.data()), launches_ * barriers_ * blocks_,
                   blocks_, true},
                  stream_),
              "launching");
    }
    ++launches_;
}

void Walker::launch_phase(const Step& step, uint32_t index) {
    *input_.data() = step;
    check(
        cudaMemcpyAsync(step_.data(), input_.data(), sizeof(Step), cudaMemcpyHostToDevice, stream_),
        "copying a step");
    check(options_.kernel->launch({&network_, device_phases(), index, index + 1,
                                   reinterpret_cast<const Step*>(step_.data()), 0, blocks_, false},
                                  stream_),
          "launching a phase");
}

void Walker::finish() const {
    check(cudaStreamSynchronize(stream_), "running a step");
}

void Walker::check(cudaError_t result, const char* what) const {
    if (result == cudaSuccess) return;
    fmt::print(stderr, "GPU: {}: {}\n", what, cudaGetErrorString(result));
    for (uint32_t block = 0; block < blocks_; ++block) {
        Note note;
        static_assert(sizeof(note) <= sizeof(distress_.data()[0]));
        std::memcpy(&note,
                    reinterpret_cast<const std::byte*>(distress_.data()) + block * sizeof(Note),
                    sizeof(note));
        if (note.awaited == 0) continue;
        fmt::print(stderr, "  block {}, thread {}: waited for {}: {} needed, {} seen\n", block,
                   note.thread, kAwaited[std::min<size_t>(note.awaited, std::size(kAwaited) - 1)],
                   note.needed, note.seen);
    }
    std::abort();
}

uint32_t Walker::live_experts() const {
    std::vector<uint32_t> live(cache_.layers.size());
    check(cudaMemcpy(live.data(), network_.live, live.size() * 4, cudaMemcpyDeviceToHost),
          "reading counts of experts");
    uint32_t sum = 0;
    for (const uint32_t count : live) sum += count;
    return sum;
}

std::vector<Stamp> Walker::stamps() const {
    std::vector<Stamp> stamps(stamps_.bytes() / sizeof(Stamp));
    if (!stamps.empty())
        check(cudaMemcpy(stamps.data(), stamps_.data(), stamps_.bytes(), cudaMemcpyDeviceToHost),
              "reading stamps");
    return stamps;
}

}  // namespace tessera::gpu
