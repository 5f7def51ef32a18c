// Cuts text into words by the pattern a tokenizer file publishes. Owns PCRE2 and the differences
// between its dialect and the one the files are written for; knows nothing about tokens.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

namespace tessera {

// Immutable after construction; one Splitter may serve many threads.
class Splitter {
  public:
    // Throws Error naming `source` if the pattern does not compile or can match nothing at all.
    Splitter(std::string_view pattern, std::string_view source);
    ~Splitter();
    Splitter(Splitter&&) noexcept;
    Splitter& operator=(Splitter&&) noexcept;

    // Gives `word` each match and each gap between matches in `text` (well-formed UTF-8), in order;
    // together they are all of `text`. Never throws: where one search exceeds its budget of steps
    // (64 a byte of `text`; the Qwen2 pattern needs one), the rest is one word. Time is linear in
    // the text for patterns that look no further than a run of characters of one kind; a hostile
    // one may spend its budget at every word.
    void split(std::string_view text, const std::function<void(std::string_view)>& word) const;

  private:
    struct Pattern;
    std::unique_ptr<const Pattern> pattern_;
};

}  // namespace tessera
