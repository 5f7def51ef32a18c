#include "server/keys.h"

#include <algorithm>
#include <charconv>

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"

namespace tessera {
namespace {

constexpr std::string_view kSecretPrefix = "tsk-";  // so that scanners of leaks can know it
constexpr size_t kSecretBytes = 32;
constexpr size_t kNameBytesMax = 100;

std::string base64url(std::span<const uint8_t> bytes) {
    constexpr std::string_view kDigits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    std::string text;
    uint32_t bits = 0, held = 0;
    for (const uint8_t byte : bytes) {
        bits = bits << 8 | byte;
        for (held += 8; held >= 6; held -= 6) text += kDigits[bits >> (held - 6) & 63];
    }
    if (held > 0) text += kDigits[bits << (6 - held) & 63];
    return text;
}

void check_rules(const KeyRules& rules) {
    if (rules.name.empty()) fail("a key needs a name: --name");
    if (rules.name.size() > kNameBytesMax)
        fail("--name: {} bytes, at most {}", rules.name.size(), kNameBytesMax);
    std::string shown = rules.name;
    std::erase(shown, '\\');  // escaped too, but no harm in a name
    if (escape_controls(shown) != shown)
        fail("--name: has a control character, or is not UTF-8: {}", escape_controls(rules.name));
    // A name of digits could be taken for the number of another key.
    if (std::ranges::all_of(rules.name, [](char c) { return c >= '0' && c <= '9'; }))
        fail("--name: {} is a number; keys have numbers of their own", rules.name);
    if (!rules.base && !rules.ultraspeed) fail("a key needs a mode: base, ultraspeed or both");
    if (rules.valid_from && rules.valid_until && *rules.valid_from >= *rules.valid_until)
        fail("the key would end before it begins: --valid-until must be later than --valid-from");
}

constexpr std::string_view kColumns =
    "id, hash, name, base, ultraspeed, created, revoked, valid_from, valid_until, "
    "requests_per_minute, tokens_per_minute, concurrency";

Key key_of(const Statement& row) {
    Key key;
    key.id = row.integer(0);
    const std::span<const uint8_t> hash = row.bytes(1);
    CHECK(hash.size() == key.hash.size());  // the table's own condition
    std::ranges::copy(hash, key.hash.begin());
    key.rules.name = row.text(2);
    key.rules.base = row.integer(3) != 0;
    key.rules.ultraspeed = row.integer(4) != 0;
    key.created = row.integer(5);
    key.revoked = row.integer_or_null(6);
    key.rules.valid_from = row.integer_or_null(7);
    key.rules.valid_until = row.integer_or_null(8);
    key.rules.requests_per_minute = static_cast<uint32_t>(row.integer(9));
    key.rules.tokens_per_minute = static_cast<uint32_t>(row.integer(10));
    key.rules.concurrency = static_cast<uint32_t>(row.integer(11));
    return key;
}

std::optional<KeyId> number_of(std::string_view text) {
    KeyId id = 0;
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), id);
    if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return id;
}

}  // namespace

SecretHash hash_of(std::string_view secret) {
    SecretHash hash;
    SHA256(reinterpret_cast<const uint8_t*>(secret.data()), secret.size(), hash.data());
    return hash;
}

bool equal_in_constant_time(const SecretHash& a, const SecretHash& b) {
    return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string new_secret() {
    std::array<uint8_t, kSecretBytes> bytes;
    if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1)
        fail("the system gave no random bytes for a new key");
    std::string secret = std::string(kSecretPrefix) + base64url(bytes);
    OPENSSL_cleanse(bytes.data(), bytes.size());
    return secret;
}

NewKey create_key(Database& store, const KeyRules& rules, UnixMs now) {
    check_rules(rules);
    Transaction transaction(store);
    Statement same = store.prepare("SELECT id FROM keys WHERE name = ? AND revoked IS NULL");
    if (same.bind(1, rules.name).step())
        fail("there is a key named {} (number {}): revoke it first, or choose another name",
             rules.name, same.integer(0));
    same.reset();
    NewKey created;
    created.secret = new_secret();
    const SecretHash hash = hash_of(created.secret);
    Statement insert = store.prepare(
        "INSERT INTO keys (hash, name, base, ultraspeed, created, valid_from, valid_until, "
        "requests_per_minute, tokens_per_minute, concurrency) "
        "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) RETURNING id");
    insert.bind_bytes(1, hash).bind(2, rules.name);
    insert.bind(3, int64_t{rules.base}).bind(4, int64_t{rules.ultraspeed}).bind(5, now);
    insert.bind(6, rules.valid_from).bind(7, rules.valid_until);
    insert.bind(8, int64_t{rules.requests_per_minute});
    insert.bind(9, int64_t{rules.tokens_per_minute}).bind(10, int64_t{rules.concurrency});
    CHECK(insert.step());
    created.id = insert.integer(0);
    insert.reset();
    transaction.commit();
    return created;
}

Key revoke_key(Database& store, std::string_view id_or_name, UnixMs now) {
    Transaction transaction(store);
    const std::vector<Key> keys = all_keys(store);
    const std::optional<KeyId> id = number_of(id_or_name);
    const auto named = [&](const Key& key) {
        return id ? key.id == *id : key.rules.name == id_or_name;
    };
    // A name may have belonged to keys that were revoked before: the living one is meant.
    auto found =
        std::ranges::find_if(keys, [&](const Key& key) { return named(key) && !key.revoked; });
    if (found == keys.end()) {
        if (std::ranges::any_of(keys, named)) fail("key {} is revoked already", id_or_name);
        fail("there is no key {}; tessera keys list shows those that there are", id_or_name);
    }
    store.prepare("UPDATE keys SET revoked = ? WHERE id = ?").bind(1, now).bind(2, found->id).run();
    transaction.commit();
    Key revoked = *found;
    revoked.revoked = now;
    return revoked;
}

std::vector<Key> all_keys(Database& store) {
    Statement rows = store.prepare(fmt::format("SELECT {} FROM keys ORDER BY id", kColumns));
    std::vector<Key> keys;
    while (rows.step()) keys.push_back(key_of(rows));
    return keys;
}

int64_t keys_version(Database& store) {
    Statement row = store.prepare("SELECT version FROM keys_version");
    return row.step() ? row.integer(0) : 0;
}

}  // namespace tessera
