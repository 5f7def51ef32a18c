#include "server/admission.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"

namespace tessera {
namespace {

constexpr double kMinuteMs = 60'000;
constexpr int64_t kConcurrencyRetryMs = 1000;  // when a request will end nobody knows

// So many a minute, filling evenly. A clock that is set back fills nothing and loses nothing.
class Bucket {
  public:
    explicit Bucket(uint32_t per_minute) : per_minute_(per_minute), level_(per_minute) {}

    // 0: there is one; else when there will be.
    int64_t wait_ms(UnixMs now) {
        if (per_minute_ == 0) return 0;
        if (at_ && now > *at_)
            level_ = std::min(per_minute_,
                              level_ + static_cast<double>(now - *at_) * per_minute_ / kMinuteMs);
        at_ = now;
        if (level_ >= 1) return 0;
        return std::max<int64_t>(std::llround(std::ceil((1 - level_) / per_minute_ * kMinuteMs)),
                                 1);
    }

    void take(double amount) {
        if (per_minute_ > 0) level_ -= amount;
    }

  private:
    double per_minute_, level_;
    std::optional<UnixMs> at_;
};

}  // namespace

// ------------------------------------------------------------------ what a refusal says

uint32_t Refusal::status() const {
    switch (why) {
        case Why::kNoKey:
        case Why::kUnknownKey:
            return 401;
        case Why::kRevoked:
        case Why::kNotYetValid:
        case Why::kNoLongerValid:
        case Why::kMode:
            return 403;
        case Why::kRequests:
        case Why::kTokens:
        case Why::kConcurrency:
            return 429;
    }
    return 401;
}

std::string_view Refusal::code() const {
    switch (why) {
        case Why::kNoKey:
        case Why::kUnknownKey:
            return "invalid_api_key";
        case Why::kRevoked:
            return "key_revoked";
        case Why::kNotYetValid:
            return "key_not_yet_valid";
        case Why::kNoLongerValid:
            return "key_expired";
        case Why::kMode:
            return "mode_not_allowed";
        case Why::kRequests:
        case Why::kTokens:
        case Why::kConcurrency:
            return "rate_limit_exceeded";
    }
    return "invalid_api_key";
}

std::string Refusal::message() const {
    const auto retry = [&](std::string_view limit) {
        return fmt::format("This key's limit of {} is reached; try again in {:.1f} s.", limit,
                           static_cast<double>(retry_after_ms) / 1e3);
    };
    switch (why) {
        case Why::kNoKey:
            return "This server needs an API key: send it as Authorization: Bearer KEY.";
        case Why::kUnknownKey:
            return "The API key is not one of this server's.";
        case Why::kRevoked:
            return "The API key was revoked.";
        case Why::kNotYetValid:
            return "The API key is not valid yet.";
        case Why::kNoLongerValid:
            return "The API key is no longer valid.";
        case Why::kMode:
            return "The API key does not allow this model; see /v1/models for those it does.";
        case Why::kRequests:
            return retry("requests a minute");
        case Why::kTokens:
            return retry("tokens a minute");
        case Why::kConcurrency:
            return retry("requests at the same time");
    }
    return {};
}

// ------------------------------------------------------------------ a key's account

// What a key has used of its limits. Shared by the admission and the permits on their way.
struct Admission::Permit::Account {
    explicit Account(Key k)
        : key(std::move(k)),
          requests(key.rules.requests_per_minute),
          tokens(key.rules.tokens_per_minute) {}

    const Key key;
    std::atomic<bool> revoked = false;
    std::mutex mutex;  // of what follows
    Bucket requests, tokens;
    uint32_t running = 0;
};

Admission::Permit::Permit(Permit&& other) noexcept : account_(std::move(other.account_)) {}

Admission::Permit& Admission::Permit::operator=(Permit&& other) noexcept {
    std::swap(account_, other.account_);
    return *this;
}

Admission::Permit::~Permit() {
    if (!account_) return;
    const std::lock_guard lock(account_->mutex);
    CHECK(account_->running > 0);
    --account_->running;
}

KeyId Admission::Permit::key() const {
    return account_->key.id;
}

std::optional<Refusal> Admission::Permit::allows(Mode mode) const {
    if (account_->key.rules.allows(mode)) return std::nullopt;
    return Refusal{Refusal::Why::kMode};
}

void Admission::Permit::charge(uint64_t tokens, UnixMs now) {
    const std::lock_guard lock(account_->mutex);
    account_->tokens.wait_ms(now);  // fill first: what was saved up by now pays
    account_->tokens.take(static_cast<double>(tokens));
}

// ------------------------------------------------------------------ the admission

Admission::Admission() {
    Key anonymous;
    anonymous.rules.ultraspeed = true;
    anonymous_ = std::make_shared<Permit::Account>(anonymous);
}

Admission::Admission(const std::filesystem::path& store, bool keys_required) : Admission() {
    store_ = std::make_unique<Database>(store);
    keys_required_ = keys_required;
    read_keys();
}

Admission::~Admission() = default;

bool Admission::open() const {
    const std::lock_guard lock(mutex_);
    return is_open();
}

bool Admission::is_open() const {
    return accounts_.empty() && !keys_required_;
}

void Admission::read_keys() {
    const int64_t version = keys_version(*store_);
    if (version == version_) return;
    for (Key& key : all_keys(*store_)) {
        std::shared_ptr<Permit::Account>& account = accounts_[key.id];
        if (!account) account = std::make_shared<Permit::Account>(key);
        account->revoked = key.revoked.has_value();
    }
    version_ = version;
}

void Admission::refresh(UnixMs now) {
    // A clock that was set back must not keep a revoked key alive.
    if (!store_ || (now >= refreshed_ && now - refreshed_ < kRefreshMs)) return;
    refreshed_ = now;
    try {
        read_keys();
    } catch (const Error& error) {
        spdlog::error("keys could not be read again, those known so far hold: {}", error.what());
    }
}

std::variant<Admission::Caller, Refusal> Admission::authenticate(std::string_view secret,
                                                                 UnixMs now) {
    const SecretHash hash = hash_of(secret);
    const std::lock_guard lock(mutex_);
    refresh(now);
    if (is_open()) return Caller{};
    if (secret.empty()) return Refusal{Refusal::Why::kNoKey};
    const Permit::Account* found = nullptr;
    for (const auto& [id, account] : accounts_)  // every one of them, found or not
        if (equal_in_constant_time(account->key.hash, hash)) found = account.get();
    if (found == nullptr) return Refusal{Refusal::Why::kUnknownKey};
    const KeyRules& rules = found->key.rules;
    if (found->revoked) return Refusal{Refusal::Why::kRevoked};
    if (rules.valid_from && now < *rules.valid_from) return Refusal{Refusal::Why::kNotYetValid};
    if (rules.valid_until && now >= *rules.valid_until)
        return Refusal{Refusal::Why::kNoLongerValid};
    return Caller{found->key.id, rules.name};
}

std::variant<Admission::Permit, Refusal> Admission::admit(KeyId key, UnixMs now) {
    std::shared_ptr<Permit::Account> account = anonymous_;
    if (key != kAnonymous) {
        const std::lock_guard lock(mutex_);
        const auto found = accounts_.find(key);
        CHECK(found != accounts_.end());  // authenticate() gave it
        account = found->second;
    }
    const std::lock_guard lock(account->mutex);
    const uint32_t concurrency = account->key.rules.concurrency;
    if (concurrency > 0 && account->running >= concurrency)
        return Refusal{Refusal::Why::kConcurrency, kConcurrencyRetryMs};
    if (const int64_t wait = account->requests.wait_ms(now))
        return Refusal{Refusal::Why::kRequests, wait};
    if (const int64_t wait = account->tokens.wait_ms(now))
        return Refusal{Refusal::Why::kTokens, wait};
    account->requests.take(1);
    ++account->running;
    return Permit(std::move(account));
}

}  // namespace tessera
