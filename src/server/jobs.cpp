#include "server/jobs.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"

namespace tessera {
namespace {

double seconds_between(std::chrono::steady_clock::time_point from,
                       std::chrono::steady_clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

uint32_t common_prefix(std::span<const Token> a, std::span<const Token> b) {
    return static_cast<uint32_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

// The step that lies between two states of a session.
Round round_between(const Stats& before, const Stats& after) {
    Round round;
    round.passes = after.steps - before.steps;
    if (after.drafted > before.drafted) round.drafts = Round::Drafts::kDrafter;
    if (after.copied > before.copied) round.drafts = Round::Drafts::kSuffix;
    if (after.forced > before.forced) round.drafts = Round::Drafts::kForced;
    for (size_t i = 0; i < after.verified.size(); ++i) {
        round.verified += after.verified[i] - before.verified[i];
        round.accepted += after.accepted[i] - before.accepted[i];
    }
    return round;
}

}  // namespace

void Job::cancel() {
    cancelled_ = true;
}

Jobs::Jobs(Model model, const JobLimits& limits, Watchdog& watchdog, JobObserver* observer)
    : model_(std::move(model)), limits_(limits), watchdog_(watchdog), observer_(observer) {
    CHECK(limits.sequences_max > 0 && limits.sequences_max <= Session::step_sessions_max());
    thread_ = std::thread([this] { run(); });
}

Jobs::~Jobs() {
    cut();
    thread_.join();
}

// ------------------------------------------------------------------ from other threads

Jobs::Submitted Jobs::submit(const std::shared_ptr<Job>& job) {
    CHECK(!job->spec().prompt.empty() && job->spec().tokens_max > 0);
    CHECK(job->spec().prompt.size() < model_.info().context_tokens);
    {
        const std::scoped_lock lock(mutex_);
        if (draining_) return Submitted::kDraining;
        if (no_room()) return Submitted::kFull;
        job->queued_ = Clock::now();
        job->queued();
        waiting_[static_cast<size_t>(job->spec().mode)].push_back(job);
        ++load_.waiting;
    }
    work_.notify_one();
    return Submitted::kYes;
}

bool Jobs::full() const {
    const std::scoped_lock lock(mutex_);
    return no_room();
}

// Places and queue are one bound: what will be given a place at the next turn does not wait.
bool Jobs::no_room() const {
    return load_.running + load_.waiting >= limits_.sequences_max + limits_.queue_max;
}

void Jobs::drain() {
    {
        const std::scoped_lock lock(mutex_);
        draining_ = true;
    }
    work_.notify_one();
}

bool Jobs::wait_done(double seconds) {
    std::unique_lock lock(mutex_);
    return done_.wait_for(lock, std::chrono::duration<double>(seconds),
                          [&] { return load_.running + load_.waiting == 0; });
}

void Jobs::cut() {
    {
        const std::scoped_lock lock(mutex_);
        draining_ = cutting_ = true;
    }
    work_.notify_one();
}

Jobs::Load Jobs::load() const {
    const std::scoped_lock lock(mutex_);
    return load_;
}

// ------------------------------------------------------------------ the thread

void Jobs::run() {
    while (admit()) {
        read_piece();
        step();
        publish();
    }
}

// Waits for something to do; false when there will be nothing more.
bool Jobs::admit() {
    std::vector<std::shared_ptr<Job>> gone, fresh;
    bool cut = false;
    {
        std::unique_lock lock(mutex_);
        work_.wait(lock, [&] { return !running_.empty() || load_.waiting > 0 || cutting_; });
        cut = cutting_;
        size_t room = cut ? 0 : limits_.sequences_max - running_.size();
        for (const Mode mode : {Mode::kUltraspeed, Mode::kBase}) {
            auto& queue = waiting_[static_cast<size_t>(mode)];
            for (auto at = queue.begin(); at != queue.end();) {
                const bool leaves = cut || (*at)->cancelled_;
                if (!leaves && room == 0) {
                    ++at;
                    continue;
                }
                (leaves ? gone : fresh).push_back(*at);
                if (!leaves) --room;
                at = queue.erase(at);
                --load_.waiting;
                if (!leaves) ++load_.running;  // never neither waiting nor running
            }
        }
    }
    for (const auto& job : gone) {
        JobReport report;
        report.queue_s = seconds_between(job->queued_, Clock::now());
        job->ended(cut ? JobEnd::kCut : JobEnd::kCancelled, report);
    }
    for (const auto& job : fresh) begin(job);
    for (auto at = running_.begin(); at != running_.end();) {
        const auto here = at++;
        if (cut || here->job->cancelled_) end(*here, cut ? JobEnd::kCut : JobEnd::kCancelled);
    }
    if (!gone.empty() || running_.empty()) publish();
    return !cut;
}

void Jobs::begin(const std::shared_ptr<Job>& job) {
    const auto now = Clock::now();
    const JobSpec& spec = job->spec();
    try {
        uint32_t cached = 0;
        Session session = session_for(spec, cached);
        if (spec.likelihood_top) session.watch_likelihood(*spec.likelihood_top);
        session.begin(std::span(spec.prompt).subspan(cached));
        if (spec.constraint) session.constrain(*spec.constraint);
        running_.push_back({job, std::move(session), cached, 0, true, now, now});
        job->started(cached);
    } catch (const Error& error) {
        spdlog::error("a request has no place: {}", error.what());
        JobReport report;
        report.queue_s = seconds_between(job->queued_, now);
        job->ended(JobEnd::kFailed, report);
    }
}

// The kept text with the longest beginning in common. One that would lose more than half of itself
// is left for its own conversation while there is room for another.
Session Jobs::session_for(const JobSpec& spec, uint32_t& cached) {
    auto best = kept_.end();
    uint32_t longest = 0;
    for (auto at = kept_.begin(); at != kept_.end(); ++at) {
        const uint32_t common = common_prefix(at->session.text(), spec.prompt);
        if (common <= longest) continue;
        longest = common;
        best = at;
    }
    const bool crowded = kept_.size() >= limits_.cache_texts;
    if (best != kept_.end() && !crowded && 2 * longest < best->session.text().size())
        best = kept_.end();
    if (best == kept_.end() && crowded)
        best = std::ranges::min_element(kept_, {}, &Kept::last_used);
    if (best == kept_.end()) {
        // Made with memory for a drafter, so that it can serve either mode later.
        Session session(model_, spec.sampling, {});
        session.restart(spec.sampling, spec.speculation);
        return session;
    }
    Session session = std::move(best->session);
    kept_.erase(best);
    session.restart(spec.sampling, spec.speculation);
    cached = session.reuse(spec.prompt);
    return session;
}

// One piece of one prompt: ultraspeed first, else who came first.
void Jobs::read_piece() {
    Running* chosen = nullptr;
    for (Running& running : running_) {
        if (!running.reading) continue;
        const bool faster = chosen != nullptr && chosen->job->spec().mode == Mode::kBase &&
                            running.job->spec().mode == Mode::kUltraspeed;
        if (chosen == nullptr || faster) chosen = &running;
    }
    if (chosen == nullptr) return;
    const Watchdog::Work work(watchdog_);
    const uint32_t wanted = chosen->session.stats().prompt_tokens + limits_.prefill_chunk;
    do {
        chosen->reading = !chosen->session.read_on();
    } while (chosen->reading && chosen->session.stats().prompt_tokens < wanted);
}

void Jobs::step() {
    std::array<Session*, 64> sessions;
    std::array<Running*, 64> stepping;
    std::array<Stats, 64> before;
    CHECK(limits_.sequences_max <= sessions.size());
    size_t count = 0;
    for (Running& running : running_) {
        if (running.reading) continue;
        before[count] = running.session.stats();
        stepping[count] = &running;
        sessions[count++] = &running.session;
    }
    if (count == 0) return;
    const auto begun = Clock::now();
    {
        const Watchdog::Work work(watchdog_);
        Session::step(std::span(sessions).first(count));
    }
    uint32_t rows = 0;
    for (size_t i = 0; i < count; ++i) {
        const Round round = round_between(before[i], sessions[i]->stats());
        stepping[i]->round = round;
        rows += round.passes + round.verified;
        if (observer_ != nullptr && round.verified > 0)
            observer_->draft_round(round.verified, round.accepted);
    }
    if (observer_ != nullptr && rows > 0)
        observer_->step(seconds_between(begun, Clock::now()), rows);
    for (auto at = running_.begin(); at != running_.end();) {
        const auto here = at++;
        if (!here->reading) deliver(*here);
    }
}

void Jobs::deliver(Running& running) {
    const JobSpec& spec = running.job->spec();
    constexpr size_t kAtOnce = 16;
    std::array<Token, kAtOnce> tokens;
    std::array<Likelihood, kAtOnce> likelihoods;
    size_t count = 0, likely = 0;
    std::optional<JobEnd> over;
    while (!over && running.session.ready() > 0 && count < kAtOnce) {
        const Token token = running.session.next();
        if (running.tokens++ == 0) running.first_token = Clock::now();
        if (model_.is_end(token)) {
            over = JobEnd::kModel;
            break;
        }
        tokens[count++] = token;
        if (spec.likelihood_top) likelihoods[likely++] = running.session.likelihood();
        if (running.tokens == spec.tokens_max) over = JobEnd::kLimit;
        if (running.session.room() == 0) over = JobEnd::kContext;
    }
    const bool more = running.job->tokens(std::span(tokens).first(count),
                                          std::span(likelihoods).first(likely), running.round);
    if (count > 0 && !more) over = JobEnd::kEnough;
    if (running.job->cancelled_) over = JobEnd::kCancelled;
    if (over) end(running, *over);
}

void Jobs::end(Running& running, JobEnd end) {
    const auto now = Clock::now();
    JobReport report;
    report.cached_tokens = running.cached;
    report.stats = running.session.stats();
    report.queue_s = seconds_between(running.job->queued_, running.begun);
    const auto first = running.tokens > 0 ? running.first_token : now;
    report.prefill_s = seconds_between(running.begun, first);
    report.decode_s = seconds_between(first, now);
    keep(std::move(running.session));
    const std::shared_ptr<Job> job = running.job;
    running_.remove_if([&](const Running& one) { return &one == &running; });
    job->ended(end, report);
    publish();
}

// ------------------------------------------------------------------ what is kept

void Jobs::keep(Session session) {
    kept_.push_back({std::move(session), ++clock_});
    const auto tokens = [&] {
        return std::accumulate(
            kept_.begin(), kept_.end(), uint64_t{0},
            [](uint64_t sum, const Kept& kept) { return sum + kept.session.text().size(); });
    };
    while (!kept_.empty() &&
           (kept_.size() > limits_.cache_texts || tokens() > limits_.cache_tokens))
        kept_.erase(std::ranges::min_element(kept_, {}, &Kept::last_used));
}

void Jobs::publish() {
    Load load;
    for (const Kept& kept : kept_)
        load.cached_tokens += static_cast<uint32_t>(kept.session.text().size());
    load.tokens = load.cached_tokens;
    for (const Running& running : running_) load.tokens += running.session.text().size();
    const std::scoped_lock lock(mutex_);
    load.running = static_cast<uint32_t>(running_.size());
    load.waiting = load_.waiting;
    load_ = load;
    if (load.running + load.waiting == 0) done_.notify_all();
}

}  // namespace tessera
