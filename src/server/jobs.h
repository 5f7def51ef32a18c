// Jobs: prompts that wait for a place, and the one thread that owns every session and advances them
// together. Knows tokens and clocks; has not heard of HTTP, JSON or text.
//
// A turn of the loop: cancelled jobs leave, waiting ones take free places (ultraspeed first), one
// piece of one prompt is read, then all that are writing advance by one step of the model. So a
// running stream never waits for more than one piece of somebody's prompt. Sessions of finished
// jobs are kept for prompts that begin alike.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "server/mode.h"
#include "server/round.h"
#include "server/watchdog.h"
#include "tessera/session.h"

namespace tessera {

enum class JobEnd : uint8_t {
    kModel,      // the model ended its answer
    kEnough,     // the job said so
    kLimit,      // tokens_max
    kContext,    // the context is full
    kCancelled,  // cancel() was called
    kCut,        // the server stops
    kFailed,     // no memory for another session
};

struct JobSpec {
    std::vector<Token> prompt;  // not empty, shorter than the context
    Sampling sampling;          // without problem()
    Speculation speculation;
    Mode mode = Mode::kBase;                 // ultraspeed goes first
    uint32_t tokens_max = UINT32_MAX;        // at least 1
    std::optional<uint32_t> likelihood_top;  // say how likely each token was, and the top ones
    std::optional<Constraint> constraint;    // where ModelInfo::constrains
};

// What a job took.
struct JobReport {
    uint32_t cached_tokens = 0;  // of the prompt, that need not be read again
    Stats stats;
    double queue_s = 0;    // until a place was free
    double prefill_s = 0;  // from there to the first token
    double decode_s = 0;   // from there to the end
};

// Somebody who wants tokens. The calls come from the jobs' thread, one at a time, and should be
// quick: everybody waits for them.
class Job {
  public:
    explicit Job(JobSpec spec) : spec_(std::move(spec)) {}
    virtual ~Job() = default;

    // It is accepted; from the submitting thread, before any other call.
    virtual void queued() = 0;
    // It has a place; `cached` tokens of the prompt are known.
    virtual void started(uint32_t cached) = 0;
    // What one step gave: the end token is not among them, so there may be none. False: enough.
    virtual bool tokens(std::span<const Token> tokens, std::span<const Likelihood> likelihoods,
                        const Round& round) = 0;
    // The last call. Where the model ended its answer, its end token is counted in the report.
    virtual void ended(JobEnd end, const JobReport& report) = 0;

    // From any thread: the work stops within one step.
    void cancel();

    const JobSpec& spec() const { return spec_; }

  private:
    friend class Jobs;
    JobSpec spec_;
    std::atomic<bool> cancelled_ = false;
    std::chrono::steady_clock::time_point queued_;
};

// What Jobs tells whoever counts; from the jobs' thread.
class JobObserver {
  public:
    virtual ~JobObserver() = default;
    virtual void step(double seconds, uint32_t rows) = 0;
    virtual void draft_round(uint32_t drafted, uint32_t accepted) = 0;
};

struct JobLimits {
    uint32_t sequences_max = 16;      // that advance together, 1 to Session::step_sessions_max()
    uint32_t queue_max = 256;         // that wait
    uint32_t prefill_chunk = 64;      // prompt tokens between two steps, rounded up to pieces
    uint32_t cache_tokens = 131'072;  // of finished texts that are kept
    uint32_t cache_texts = 32;        // and so many of them
};

class Jobs {
  public:
    // Starts the thread. `watchdog` is told when the model begins and ends its work. Both outlive
    // this; `observer` may be null.
    Jobs(Model model, const JobLimits& limits, Watchdog& watchdog, JobObserver* observer);
    ~Jobs();  // cuts what runs

    enum class Submitted : uint8_t { kYes, kFull, kDraining };
    Submitted submit(const std::shared_ptr<Job>& job);
    bool full() const;

    // No new jobs from now on; those that are there go on.
    void drain();
    // Waits until none is left; false after `seconds`.
    bool wait_done(double seconds);
    // Ends all that are left, each with kCut.
    void cut();

    struct Load {
        uint32_t running = 0, waiting = 0;
        uint32_t cached_tokens = 0;  // of finished texts
        uint64_t tokens = 0;         // of all texts, running and finished
    };
    Load load() const;

  private:
    using Clock = std::chrono::steady_clock;

    // A text in memory, kept for prompts that begin like it.
    struct Kept {
        Session session;
        uint64_t last_used;
    };
    struct Running {
        std::shared_ptr<Job> job;
        Session session;
        uint32_t cached = 0;
        uint32_t tokens = 0;
        bool reading = true;
        Clock::time_point begun, first_token;
        Round round = {};  // of the step at hand
    };

    bool no_room() const;  // under mutex_
    void run();
    bool admit();
    void begin(const std::shared_ptr<Job>& job);
    Session session_for(const JobSpec& spec, uint32_t& cached);
    void read_piece();
    void step();
    void deliver(Running& running);
    void end(Running& running, JobEnd end);
    void keep(Session session);
    void publish();

    Model model_;
    const JobLimits limits_;
    Watchdog& watchdog_;
    JobObserver* observer_;

    // The thread's own.
    std::list<Running> running_;
    std::vector<Kept> kept_;
    uint64_t clock_ = 0;

    mutable std::mutex mutex_;
    std::condition_variable work_, done_;
    std::array<std::deque<std::shared_ptr<Job>>, kModes.size()> waiting_;  // by mode
    bool draining_ = false, cutting_ = false;
    Load load_;

    std::thread thread_;  // last: it uses all of the above
};

}  // namespace tessera
