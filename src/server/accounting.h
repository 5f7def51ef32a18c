// Who comes in, and what is written down about it: keys and their budgets, the ledger, the metrics
// and the log, all told of a request from one place.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "server/admission.h"
#include "server/config.h"
#include "server/http.h"
#include "server/ledger.h"
#include "server/metrics.h"
#include "server/problem.h"
#include "server/reply.h"

namespace tessera {

// Whoever sent a request. Lives as long as the request, or its job, whichever is longer: until then
// it takes one of its key's places.
struct Guest {
    Admission::Caller caller;
    std::optional<Admission::Permit> permit;  // of requests that generate
};

class Accounting : public JobObserver {
  public:
    // Opens the store, if there is one. Throws Error. The ids are what clients call the modes.
    Accounting(const ServerConfig& config, std::string base_id, std::string ultraspeed_id);

    // From the headers: who it is. `generates`: a request that counts against its key's limits.
    OrProblem<std::shared_ptr<Guest>> welcome(const HttpRequest& head, bool generates);

    // A request that will become a job. A problem: not for this key's mode, or the ledger is full.
    // The observer belongs to the reply.
    OrProblem<std::unique_ptr<ReplyObserver>> open(const HttpRequest& request, Mode mode,
                                                   uint32_t prompt_tokens);

    // An exchange is over, whatever it was.
    void finished(const HttpRequest& request, const HttpOutcome& outcome);

    Metrics& metrics() { return metrics_; }
    std::optional<Ledger::State> ledger_state() const;

    void step(double seconds, uint32_t rows) override { metrics_.step(seconds, rows); }
    void draft_round(uint32_t drafted, uint32_t accepted) override {
        metrics_.draft_round(drafted, accepted);
    }

  private:
    class Account;

    const std::string base_id_;
    const ModelPrices prices_;
    Metrics metrics_;
    std::unique_ptr<Admission> admission_;
    std::unique_ptr<Ledger> ledger_;  // none without a store
};

}  // namespace tessera
