#include "tessera/stats.h"

#include <fmt/format.h>

namespace tessera {

std::string Stats::line() const {
    const double prompt_rate = prompt_seconds > 0 ? prompt_tokens / prompt_seconds : 0;
    return fmt::format(
        "prompt {} tokens at {:.1f}/s; {} tokens at {:.1f}/s; τ {:.2f}; {:.2f} ms a step; hash "
        "{:016x}",
        prompt_tokens, prompt_rate, tokens, tokens_per_second(), tokens_per_step(), ms_per_step(),
        hash);
}

}  // namespace tessera
