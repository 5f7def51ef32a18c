#include "runtime/trace_file.h"

#include <fmt/format.h>

#include "base/error.h"

namespace tessera {

TraceFile::TraceFile(const std::filesystem::path& path, std::string_view process)
    : path_(path), file_(std::fopen(path.c_str(), "w"), std::fclose) {
    if (!file_) fail("{}: cannot be written", path.string());
    fmt::print(file_.get(),
               R"({{"displayTimeUnit": "ns", "traceEvents": [)"
               "\n"
               R"({{"ph": "M", "pid": 1, "name": "process_name", "args": {{"name": "{}"}}}})",
               process);
}

void TraceFile::track(uint32_t track, std::string_view name) {
    fmt::print(file_.get(),
               ",\n"
               R"({{"ph": "M", "pid": 1, "tid": {}, "name": "thread_name", )"
               R"("args": {{"name": "{}"}}}})",
               track, name);
}

void TraceFile::slice(const Slice& s) {
    fmt::print(file_.get(),
               ",\n"
               R"({{"ph": "X", "pid": 1, "tid": {}, "name": "{}", "cat": "{}", "ts": {:.3f}, )"
               R"("dur": {:.3f}, "args": {{{}}}}})",
               s.track, s.name, s.kind, 1e-3 * static_cast<double>(s.began_ns),
               1e-3 * static_cast<double>(s.ended_ns - s.began_ns), s.arguments);
}

void TraceFile::close() {
    fmt::print(file_.get(), "\n]}}\n");
    if (std::fflush(file_.get()) != 0) fail("{}: cannot be written", path_.string());
}

}  // namespace tessera
