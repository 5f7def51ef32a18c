// API keys as the store keeps them: who may do what, until when and how much. The secret itself is
// shown once and stored nowhere.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/database.h"
#include "server/mode.h"

namespace tessera {

// SHA-256 of a secret. A fast hash is enough: a secret is 256 random bits, not a word that someone
// chose, so there is nothing to guess that a slow hash would slow down.
using SecretHash = std::array<uint8_t, 32>;
SecretHash hash_of(std::string_view secret);

// In a time that does not depend on where they differ.
bool equal_in_constant_time(const SecretHash& a, const SecretHash& b);

// "tsk-" and 43 characters of base64url: 256 bits of the system's randomness.
std::string new_secret();

using KeyId = int64_t;
inline constexpr KeyId kAnonymous = 0;  // requests of a server without keys

// What a key may do. 0 means no limit.
struct KeyRules {
    std::string name;  // unique among the keys that are not revoked
    bool base = true, ultraspeed = false;
    std::optional<UnixMs> valid_from;   // from here on
    std::optional<UnixMs> valid_until;  // and before here
    uint32_t requests_per_minute = 0;
    uint32_t tokens_per_minute = 0;  // prompt and completion together
    uint32_t concurrency = 0;        // requests at the same time

    bool allows(Mode mode) const { return mode == Mode::kBase ? base : ultraspeed; }
};

struct Key {
    KeyId id = 0;  // from 1; never used again
    SecretHash hash{};
    UnixMs created = 0;
    std::optional<UnixMs> revoked;
    KeyRules rules;
};

struct NewKey {
    KeyId id = 0;
    std::string secret;  // for the person who asked, once
};

// Throws Error: a key of that name is in use, rules that contradict themselves, a name that is
// empty, longer than 100 bytes or has control characters.
NewKey create_key(Database& store, const KeyRules& rules, UnixMs now);

// By number or by name. Throws Error if there is no such key or it is revoked already.
Key revoke_key(Database& store, std::string_view id_or_name, UnixMs now);

std::vector<Key> all_keys(Database& store);  // by id, revoked ones too

// Grows with every change of the keys, whichever process makes it.
int64_t keys_version(Database& store);

}  // namespace tessera
