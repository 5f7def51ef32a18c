#include "runtime/trace.h"

#include <fmt/format.h>

#include "runtime/trace_file.h"

namespace tessera {

Trace::Trace(uint32_t workers, size_t tiles_max) : workers_(workers) {
    for (auto& stamps : workers_) stamps.reserve(tiles_max);
}

void Trace::write(const std::filesystem::path& path) const {
    TraceFile file(path, "tessera");
    for (uint32_t worker = 0; worker < workers_.size(); ++worker) {
        file.track(worker, fmt::format("worker {}", worker));
        for (const Stamp& s : workers_[worker]) {
            const Tile& t = s.tile;
            if (s.began_ns > s.waited_ns)
                file.slice({worker, "wait", "wait", s.waited_ns, s.began_ns,
                            fmt::format(R"("for": "{}")", op_name(t.op))});
            file.slice(
                {worker, op_name(t.op), "work", s.began_ns, s.ended_ns,
                 fmt::format(R"("layer": {}, "rank": {}, "slot": {}, "begin": {}, "end": {})",
                             t.layer, t.rank, t.slot, t.begin, t.end)});
        }
    }
    file.close();
}

}  // namespace tessera
