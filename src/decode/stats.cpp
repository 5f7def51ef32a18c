#include "tessera/stats.h"

#include <fmt/format.h>

namespace tessera {

std::string Stats::line() const {
    const double prompt_rate = prompt_seconds > 0 ? prompt_tokens / prompt_seconds : 0;
    std::string line = fmt::format(
        "prompt {} tokens at {:.1f}/s; {} tokens at {:.1f}/s; τ {:.2f}; {:.2f} ms a step",
        prompt_tokens, prompt_rate, tokens, tokens_per_second(), tokens_per_step(), ms_per_step());
    if (drafted + copied + forced > 0)
        line +=
            fmt::format(" ({:.0f} % drafted, {:.2f} ms a draft, {:.0f} % copied{})",
                        100.0 * drafted / steps, ms_per_draft(), 100.0 * copied / steps,
                        forced > 0 ? fmt::format(", {:.0f} % forced", 100.0 * forced / steps) : "");
    if (bytes > 0) line += fmt::format("; {:.2f} GB/s", 1e-9 * bytes_per_second());
    if (bytes > 0 && read_bandwidth > 0)
        line += fmt::format(", {:.0f} % of what the machine reads",
                            100 * bytes_per_second() / read_bandwidth);
    if (experts > 0) line += fmt::format("; {:.1f} experts a layer", experts);
    return line + fmt::format("; hash {:016x}", hash);
}

}  // namespace tessera
