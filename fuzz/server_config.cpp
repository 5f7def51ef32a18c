// A server's configuration file: any bytes give settings within their ranges, or an Error.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "base/error.h"
#include "server/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace tessera;
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    try {
        const ConfigFile file = ConfigFile::parse(text, "file");
        // What a file was read to say is never refused later.
        const ServerConfig config = resolve(
            {}, [](const char*) -> const char* { return nullptr; }, file);
        CHECK(config.port <= 65'535 && config.sequences_max >= 1);
        CHECK(config.idle_s > 0 && config.idle_s <= 86'400);
        for (const auto& [model, prices] : config.prices)
            for (const Mode mode : kModes)
                cost_of({kTokensChargedMax, 0, kTokensChargedMax}, token_prices(prices, mode));
    } catch (const Error&) {
    }
    return 0;
}
