// The one exception of the house. It is thrown only while loading: a bad file, a bad flag, too
// little memory. A bug aborts (check.h); a bad request is a value. After loading nothing throws.
#pragma once

#include <stdexcept>
#include <string>

#include <fmt/format.h>

namespace tessera {

// A message for the person at the keyboard: what is wrong, where, both values, and the fix.
class Error : public std::runtime_error {
  public:
    explicit Error(const std::string& message) : std::runtime_error(message) {}
};

// Throws Error with a fmt format string: fail("{}: expected {}, found {}", name, want, got).
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
    throw Error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace tessera
