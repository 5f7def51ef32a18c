// UTF-8 from strangers made well-formed, in pieces or at once. Owns the one rule of the house for
// broken bytes: each maximal ill-formed subpart becomes U+FFFD (Unicode 15, §3.9, table 3-8), which
// is also what Python's bytes.decode("utf-8", errors="replace") does. Knows no tokens.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tessera {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

// Bytes at the start of `bytes` that are whole, well-formed characters.
size_t valid_utf8_prefix(std::string_view bytes);

// `bytes` with every ill-formed part replaced.
std::string repair_utf8(std::string_view bytes);

// The same rule for bytes that arrive in pieces: push(a) then push(b) writes what push(a + b)
// would.
class Utf8Repair {
  public:
    // Appends to `out` every character that is now complete; holds back at most three bytes.
    void push(std::string_view bytes, std::string& out);

    // Appends U+FFFD if a character was left unfinished, and starts afresh.
    void finish(std::string& out);

    // Bytes held back, waiting for the rest of their character: 0 to 3.
    size_t held_bytes() const { return held_count_; }

  private:
    bool starts_character(uint8_t byte);

    std::array<char, 4> held_{};
    uint8_t held_count_ = 0;
    uint8_t missing_ = 0;               // continuation bytes still to come
    uint8_t low_ = 0x80, high_ = 0xbf;  // what the next one may be
};

}  // namespace tessera
