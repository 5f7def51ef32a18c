#include "server/accounting.h"

#include "base/error.h"
#include "base/log.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begun) {
    return std::chrono::duration<double>(Clock::now() - begun).count();
}

ApiProblem problem_of(const Refusal& refusal) {
    return {.status = refusal.status(),
            .message = refusal.message(),
            .code = std::string(refusal.code()),
            .retry_after_ms = refusal.retry_after_ms};
}

// "Authorization: Bearer KEY", "api-key: KEY" as the MiMo platform has it, or Anthropic's
// "x-api-key: KEY".
std::string_view secret_of(const HttpRequest& head) {
    constexpr std::string_view kBearer = "bearer ";
    std::string_view given = head.header("authorization");
    if (!given.empty()) {
        const auto same = [](char a, char b) { return (a | 0x20) == (b | 0x20); };
        if (given.size() > kBearer.size() &&
            std::equal(kBearer.begin(), kBearer.end(), given.begin(), same)) {
            given.remove_prefix(kBearer.size());
            return given.substr(std::min(given.find_first_not_of(' '), given.size()));
        }
    }
    given = head.header("api-key");
    return given.empty() ? head.header("x-api-key") : given;
}

}  // namespace

// What is known of one request until it ends.
class Accounting::Account : public ReplyObserver {
  public:
    Account(Accounting& accounting, const HttpRequest& request, std::shared_ptr<Guest> guest,
            std::optional<Ledger::Slot> slot, Mode mode, uint32_t prompt_tokens)
        : accounting_(accounting),
          guest_(std::move(guest)),
          slot_(std::move(slot)),
          received_(request.received),
          prompt_tokens_(prompt_tokens) {
        row_.request_id = request.id;
        row_.key = guest_->caller.key;
        row_.mode = mode;
        row_.model = accounting.base_id_;
        row_.prices = token_prices(accounting.prices_, mode);
        row_.received = unix_ms_now();
    }

    void started(uint32_t cached_tokens) override {
        accounting_.metrics_.request_started(row_.mode, prompt_tokens_, cached_tokens);
    }

    void tokens(uint32_t count) override {
        Metrics& metrics = accounting_.metrics_;
        const auto now = Clock::now();
        if (counted_ == 0) {
            metrics.first_token(row_.mode, seconds_since(received_));
            row_.first_token = unix_ms_now();
        } else {
            metrics.tokens_between(row_.mode, std::chrono::duration<double>(now - last_).count(),
                                   count);
        }
        last_ = now;
        counted_ += count;
        metrics.tokens_generated(row_.mode, count);
    }

    void ended(Ended how, const TokenCounts& tokens, const JobReport& report) override {
        // The end token was not told of.
        if (tokens.completion > counted_)
            accounting_.metrics_.tokens_generated(row_.mode, tokens.completion - counted_);
        const double whole = seconds_since(received_);
        accounting_.metrics_.request_ended(
            row_.mode, how, {report.queue_s, report.prefill_s, report.decode_s, whole});
        row_.tokens = tokens;
        row_.finished = unix_ms_now();
        row_.ended = how;
        if (guest_->permit)
            guest_->permit->charge(uint64_t{tokens.prompt} + tokens.completion, row_.finished);
        log_event(spdlog::level::info, "reply",
                  {{"id", row_.request_id},
                   {"key", guest_->caller.name},
                   {"mode", mode_name(row_.mode)},
                   {"ended", ended_name(how)},
                   {"prompt", int64_t{tokens.prompt}},
                   {"cached", int64_t{tokens.cached}},
                   {"completion", int64_t{tokens.completion}},
                   {"queue_ms", 1e3 * report.queue_s},
                   {"prefill_ms", 1e3 * report.prefill_s},
                   {"decode_ms", 1e3 * report.decode_s}});
        if (slot_) slot_->record(std::move(row_));
        slot_.reset();
        guest_.reset();
    }

  private:
    Accounting& accounting_;
    std::shared_ptr<Guest> guest_;
    std::optional<Ledger::Slot> slot_;
    const Clock::time_point received_;
    const uint32_t prompt_tokens_;
    LedgerRow row_;
    uint32_t counted_ = 0;
    Clock::time_point last_;
};

Accounting::Accounting(const ServerConfig& config, std::string base_id, std::string ultraspeed_id)
    : base_id_(std::move(base_id)),
      prices_(config.prices_of(base_id_)),
      metrics_(base_id_, ultraspeed_id) {
    if (config.store.empty()) {
        if (config.keys_required) fail("--keys-required: there are no keys without --store FILE");
        admission_ = std::make_unique<Admission>();
        return;
    }
    admission_ = std::make_unique<Admission>(config.store, config.keys_required);
    ledger_ = std::make_unique<Ledger>(config.store, config.ledger_slots);
}

OrProblem<std::shared_ptr<Guest>> Accounting::welcome(const HttpRequest& head, bool generates) {
    const UnixMs now = unix_ms_now();
    auto known = admission_->authenticate(secret_of(head), now);
    if (const auto* refusal = std::get_if<Refusal>(&known)) return problem_of(*refusal);
    auto guest = std::make_shared<Guest>();
    guest->caller = std::move(std::get<Admission::Caller>(known));
    if (!generates) return guest;
    auto permit = admission_->admit(guest->caller.key, now);
    if (const auto* refusal = std::get_if<Refusal>(&permit)) return problem_of(*refusal);
    guest->permit.emplace(std::move(std::get<Admission::Permit>(permit)));
    return guest;
}

OrProblem<std::unique_ptr<ReplyObserver>> Accounting::open(const HttpRequest& request, Mode mode,
                                                           uint32_t prompt_tokens) {
    auto guest = std::any_cast<std::shared_ptr<Guest>>(request.guest);
    if (const auto refusal = guest->permit->allows(mode)) return problem_of(*refusal);
    std::optional<Ledger::Slot> slot;
    if (ledger_) {
        slot = ledger_->reserve();
        if (!slot) {
            return ApiProblem{.status = 503,
                              .message = "the ledger cannot keep up: try again later",
                              .code = "ledger_full",
                              .retry_after_ms = 1000};
        }
    }
    return std::make_unique<Account>(*this, request, std::move(guest), std::move(slot), mode,
                                     prompt_tokens);
}

void Accounting::finished(const HttpRequest& request, const HttpOutcome& outcome) {
    if (outcome.status >= 400) metrics_.refused(outcome.status);
    // Asked every few seconds by machines: not worth a line each.
    if (outcome.status == 200 && (request.path == "/health" || request.path == "/metrics")) return;
    constexpr size_t kPathShown = 200;
    log_event(spdlog::level::info, "http",
              {{"id", request.id},
               {"peer", request.peer},
               {"method", request.method},
               {"path", std::string_view(request.path).substr(0, kPathShown)},
               {"status", int64_t{outcome.status}},
               {"ms", 1e3 * outcome.seconds},
               {"bytes", static_cast<int64_t>(outcome.bytes_sent)},
               {"whole", outcome.whole}});
}

std::optional<Ledger::State> Accounting::ledger_state() const {
    if (!ledger_) return std::nullopt;
    return ledger_->state();
}

}  // namespace tessera
