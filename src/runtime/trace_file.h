// A Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open: tracks with slices
// that have a name, a kind and arguments. Which tracks and slices there are is known to those who
// write.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace tessera {

class TraceFile {
  public:
    // Throws Error if the file cannot be written; so does close().
    TraceFile(const std::filesystem::path& path, std::string_view process);
    void close();

    void track(uint32_t track, std::string_view name);

    struct Slice {
        uint32_t track;
        std::string_view name, kind;
        int64_t began_ns, ended_ns;
        std::string_view arguments;  // the inside of a JSON object; may be empty
    };
    void slice(const Slice& slice);

  private:
    std::filesystem::path path_;
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

}  // namespace tessera
