#include "runtime/gpu/stamps.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/check.h"
#include "runtime/trace_file.h"

namespace tessera::gpu {
namespace {

class Writer {
  public:
    Writer(TraceFile& file, uint64_t zero, uint32_t block)
        : file_(file), zero_(zero), block_(block) {
        file_.track(block, fmt::format("block {}", block));
    }

    void phase(const Phase& p, const Stamp& s) {
        const std::string where = fmt::format(R"("layer": {})", p.layer);
        slice("wait", "wait", s.arrived, s.began, fmt::format(R"("for": "{}")", phase_name(p)));
        slice(phase_name(p), "work", s.began, s.ended, where);
        if (p.matrix.data == nullptr) return;  // the stamps between are of a phase before
        slice("prepare", "part", s.began, s.prepared, where);
        slice("stream", "part", s.prepared, s.streamed, where);
        slice("finish", "part", s.streamed, s.ended, where);
    }

  private:
    void slice(std::string_view name, std::string_view kind, uint64_t began, uint64_t ended,
               const std::string& arguments) {
        if (ended > began)
            file_.slice({block_, name, kind, static_cast<int64_t>(began - zero_),
                         static_cast<int64_t>(ended - zero_), arguments});
    }

    TraceFile& file_;
    uint64_t zero_;
    uint32_t block_;
};

}  // namespace

std::string phase_name(const Phase& p) {
    return fmt::format("{}{}", op_name(p.op), p.moe ? " of experts" : "");
}

void write_trace(const std::filesystem::path& path, std::span<const Phase> phases,
                 std::span<const Stamp> stamps) {
    CHECK(!phases.empty() && !stamps.empty() && stamps.size() % phases.size() == 0);
    const auto blocks = static_cast<uint32_t>(stamps.size() / phases.size());
    const uint64_t zero = std::ranges::min(stamps, {}, &Stamp::arrived).arrived;
    TraceFile file(path, "tessera on a GPU");
    for (uint32_t block = 0; block < blocks; ++block) {
        Writer writer(file, zero, block);
        for (size_t i = 0; i < phases.size(); ++i)
            writer.phase(phases[i], stamps[i * blocks + block]);
    }
    file.close();
}

}  // namespace tessera::gpu
