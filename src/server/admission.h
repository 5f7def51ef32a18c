// Who may come in, decided from the headers alone, before a byte of the body is read. Knows keys
// and clocks; has not heard of HTTP beyond the number of a status. Thread-safe.
//
//     const auto who = admission.authenticate(secret, now);   // 401, 403; any route
//     auto permit = admission.admit(who.key, now);            // 429; counts a request
//     if (auto no = permit.allows(mode)) …                    // 403, once the body names the model
//     permit.charge(prompt + completion, now);                // at the end, however it ended
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>

#include "server/keys.h"

namespace tessera {

// A request that may not come in, and what to answer.
struct Refusal {
    enum class Why : uint8_t {
        kNoKey,          // 401: a key is needed, none was sent
        kUnknownKey,     // 401: no such key
        kRevoked,        // 403
        kNotYetValid,    // 403
        kNoLongerValid,  // 403
        kMode,           // 403: the key is not for this mode
        kRequests,       // 429: requests a minute
        kTokens,         // 429: tokens a minute
        kConcurrency,    // 429: requests at the same time
    };
    Why why;
    int64_t retry_after_ms = 0;  // of a 429: when it is worth trying again; else 0

    uint32_t status() const;        // 401, 403 or 429
    std::string_view code() const;  // for `error.code`: "invalid_api_key", "rate_limit_exceeded", …
    std::string message() const;    // for people; names no secret
};

class Admission {
  public:
    // A server without keys: everybody is kAnonymous and may do everything.
    Admission();

    // Keys of a store, which is made if there is none. Throws Error if it cannot be read.
    Admission(const std::filesystem::path& store, bool keys_required);
    ~Admission();

    // Whether everybody may come in: no key was ever made in the store, and none is required. A
    // store whose keys are all revoked is not open.
    bool open() const;

    struct Caller {
        KeyId key = kAnonymous;
        std::string name;  // empty for kAnonymous
    };
    // `secret`: what the client presented, empty if nothing. Compares with every key there is, in
    // constant time. Keys made or revoked by another process are seen within kRefreshMs.
    std::variant<Caller, Refusal> authenticate(std::string_view secret, UnixMs now);
    static constexpr int64_t kRefreshMs = 1000;

    // One request on its way. While it lives it takes one of its key's concurrent places.
    class Permit {
      public:
        Permit(Permit&& other) noexcept;
        Permit& operator=(Permit&& other) noexcept;
        ~Permit();  // gives the place back

        KeyId key() const;
        std::optional<Refusal> allows(Mode mode) const;

        // Tokens that were used, once they are known: at the end, or as they come.
        void charge(uint64_t tokens, UnixMs now);

      private:
        friend class Admission;
        struct Account;
        explicit Permit(std::shared_ptr<Account> account) : account_(std::move(account)) {}
        std::shared_ptr<Account> account_;  // outlives a key that is revoked meanwhile
    };

    // Counts the request against its key. Requests and tokens a minute are buckets that fill
    // evenly: a minute's worth may come at once, then one after another. Tokens are charged when
    // they are known, so that a bucket can be overdrawn by the requests on their way; nothing more
    // comes in until it has filled again.
    std::variant<Permit, Refusal> admit(KeyId key, UnixMs now);

  private:
    // Both under mutex_.
    void refresh(UnixMs now);
    bool is_open() const;
    void read_keys();  // throws Error

    mutable std::mutex mutex_;
    std::unique_ptr<Database> store_;  // none: a server without keys
    bool keys_required_ = false;
    int64_t version_ = -1;
    UnixMs refreshed_ = 0;
    std::shared_ptr<Permit::Account> anonymous_;
    std::unordered_map<KeyId, std::shared_ptr<Permit::Account>>
        accounts_;  // none of the store's is ever dropped
};

}  // namespace tessera
