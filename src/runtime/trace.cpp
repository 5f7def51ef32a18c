#include "runtime/trace.h"

#include <cstdio>
#include <memory>

#include <fmt/format.h>

#include "base/error.h"

namespace tessera {

Trace::Trace(uint32_t workers, size_t tiles_max) : workers_(workers) {
    for (auto& stamps : workers_) stamps.reserve(tiles_max);
}

void Trace::write(const std::filesystem::path& path) const {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "w"),
                                                               std::fclose);
    if (!file) fail("{}: cannot be written", path.string());
    fmt::print(file.get(), "{{\"displayTimeUnit\": \"ns\", \"traceEvents\": [\n");
    for (uint32_t worker = 0; worker < workers_.size(); ++worker) {
        fmt::print(file.get(),
                   R"({{"ph": "M", "pid": 1, "tid": {0}, "name": "thread_name", )"
                   R"("args": {{"name": "worker {0}"}}}},)"
                   "\n",
                   worker);
        for (const Stamp& s : workers_[worker]) {
            const Tile& t = s.tile;
            if (s.began_ns > s.waited_ns) {
                fmt::print(file.get(),
                           R"({{"ph": "X", "pid": 1, "tid": {}, "name": "wait", "cat": "wait", )"
                           R"("ts": {:.3f}, "dur": {:.3f}, "args": {{"for": "{}"}}}},)"
                           "\n",
                           worker, 1e-3 * static_cast<double>(s.waited_ns),
                           1e-3 * static_cast<double>(s.began_ns - s.waited_ns), op_name(t.op));
            }
            fmt::print(file.get(),
                       R"({{"ph": "X", "pid": 1, "tid": {}, "name": "{}", "cat": "work", )"
                       R"("ts": {:.3f}, "dur": {:.3f}, "args": {{"layer": {}, "rank": {}, )"
                       R"("slot": {}, "begin": {}, "end": {}}}}},)"
                       "\n",
                       worker, op_name(t.op), 1e-3 * static_cast<double>(s.began_ns),
                       1e-3 * static_cast<double>(s.ended_ns - s.began_ns), t.layer, t.rank, t.slot,
                       t.begin, t.end);
        }
    }
    fmt::print(file.get(), R"({{"ph": "M", "pid": 1, "name": "process_name", )"
                           R"("args": {{"name": "tessera"}}}}]}})"
                           "\n");
    if (std::fflush(file.get()) != 0) fail("{}: cannot be written", path.string());
}

}  // namespace tessera
