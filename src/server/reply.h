// A job whose tokens become a reply: text, up to a stop string, parsed into reasoning, content and
// calls, spelt by a format and handed to an exchange. The one place where jobs and HTTP meet.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "server/format.h"
#include "server/http.h"
#include "server/jobs.h"
#include "server/ledger.h"
#include "server/provenance.h"
#include "tessera/reply.h"

namespace tessera {

// Who is told what a request becomes; from the jobs' thread, except queued().
class ReplyObserver {
  public:
    virtual ~ReplyObserver() = default;
    virtual void started(uint32_t cached_tokens) = 0;
    virtual void tokens(uint32_t count) = 0;  // that one step brought
    // `prompt` and `cached` as read, `completion` as shown or cut.
    virtual void ended(Ended how, const TokenCounts& tokens, const JobReport& report) = 0;
};

// A reply that is nothing but a problem; `body` says it as an API does.
HttpReply problem_reply(const ApiProblem& problem, std::string body);

struct ReplyPlan {
    std::unique_ptr<ReplyFormat> format;
    bool stream = false;
    bool rounds = false;    // of a stream: tell the format how its text came about
    bool one_call = false;  // the reply ends with its first call
    std::vector<std::string> stops;
    std::optional<OutputParser> parser;  // none: plain text
    std::string begins;                  // of the reply, at the end of the prompt
};

class Reply : public Job {
  public:
    Reply(JobSpec spec, ReplyPlan plan, const Model& model, std::shared_ptr<Exchange> exchange,
          std::unique_ptr<ReplyObserver> observer);

    void queued() override;
    void started(uint32_t cached) override;
    bool tokens(std::span<const Token> tokens, std::span<const Likelihood> likelihoods,
                const Round& round) override;
    void ended(JobEnd end, const JobReport& report) override;

  private:
    void read(std::string_view text);
    void read(std::vector<OutputEvent> events);
    bool hand_over();
    void finish(JobEnd end, const JobReport& report);
    void fail(const ApiProblem& problem);

    ReplyPlan plan_;
    Model model_;
    std::shared_ptr<Exchange> exchange_;
    std::unique_ptr<ReplyObserver> observer_;
    Detokenizer detokenizer_;
    StopFinder stops_;
    Provenance provenance_;   // where rounds are told
    size_t plain_bytes_ = 0;  // of a reply without a parser, that became events

    // What the step at hand brought.
    std::vector<OutputEvent> events_;
    std::vector<TokenShown> shown_;
    std::vector<Round> rounds_;
    std::vector<TextSpan> spans_;
    std::string out_;

    uint32_t cached_ = 0, completion_ = 0, reasoning_ = 0;
    bool reasons_ = false, answers_ = false;  // reasoning was seen; content or a call was
    bool called_ = false;                     // a whole call was seen
    bool enough_ = false, lost_ = false;
};

}  // namespace tessera
