// One JSON object of a config file, read key by key with errors that name the file, the key, what
// was expected and what was found.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace tessera {

class Keys {
  public:
    // Throws Error if `object` is not one. Both must outlive the keys.
    Keys(const Json& object, std::string_view source);

    const Json& at(const char* key) const;
    // Missing and null are the same: published configs write both.
    bool has(const char* key) const;

    uint32_t count(const char* key, uint32_t low, uint32_t high) const;
    float real(const char* key, double low, double high) const;
    bool flag(const char* key, bool otherwise) const;
    std::string text(const char* key) const;
    std::vector<bool> layer_flags(const char* key, uint32_t layers) const;  // one 0 or 1 a layer

    // An element of a list under `key`.
    uint32_t count_of(const Json& value, const char* key, uint32_t low, uint32_t high) const;

    // Refuses a feature that is not supported: absent, null or `value` may stand there.
    void only(const char* key, const Json& value) const;

    std::string_view source() const { return source_; }

    // A value as an error shows it: printable and short.
    static std::string shown(const Json& value);

  private:
    const Json& object_;
    std::string_view source_;
};

}  // namespace tessera
