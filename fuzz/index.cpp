// Any text as an index: refused, or every shard is a file name that stays in its folder.
#include <filesystem>
#include <string_view>

#include "base/check.h"
#include "base/error.h"
#include "checkpoint/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    try {
        for (const auto& [name, shard] : tessera::parse_index(text, "index")) {
            const std::filesystem::path path(shard);
            CHECK(path.is_relative() && path.filename() == path);
            CHECK(path != "." && path != "..");
            CHECK(shard.ends_with(".safetensors"));
            CHECK(shard.find('\0') == shard.npos && shard.find('\\') == shard.npos);
        }
    } catch (const tessera::Error&) {
    }
    return 0;
}
