// Jobs: what each writes beside others is what it writes alone; who waits, who goes first, who
// leaves, and what is kept.
#include "server/jobs.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "base/error.h"

namespace tessera {
namespace {

const Model& bundled() {
    static const Model model = Model::load(TESSERA_MODEL);
    return model;
}

std::vector<Token> prompt(uint32_t which, uint32_t lines = 4) {
    std::string text = "class Number" + std::to_string(which) + ":\n";
    for (uint32_t i = 0; i < lines; ++i)
        text += "    def method_" + std::to_string(i * which) + "(self): return " +
                std::to_string(i) + "\n";
    return bundled().encode(text);
}

JobSpec spec_of(uint32_t which, Mode mode = Mode::kBase, uint32_t tokens_max = 24) {
    JobSpec spec;
    spec.prompt = prompt(which, 2 + 3 * (which % 5));
    spec.sampling.temperature = which % 3 == 0 ? 0.0f : 0.9f;
    spec.sampling.seed = which;
    spec.mode = mode;
    spec.speculation.mode = mode == Mode::kBase ? Speculate::kOff : Speculate::kFixed;
    spec.tokens_max = tokens_max;
    return spec;
}

std::vector<Token> alone(const JobSpec& spec) {
    Session session(bundled(), spec.sampling, {Speculate::kOff, 7});
    session.append(spec.prompt);
    std::vector<Token> text;
    while (text.size() < spec.tokens_max && session.room() > 0) {
        text.push_back(session.next());
        if (!bundled().is_end(text.back())) continue;
        text.pop_back();
        break;
    }
    return text;
}

// What happens, in the order of its happening, over all jobs of a test.
struct Diary {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::string> lines;

    void note(const std::string& line) {
        {
            const std::scoped_lock lock(mutex);
            lines.push_back(line);
        }
        changed.notify_all();
    }
    void wait_for(const std::string& line) {
        std::unique_lock lock(mutex);
        const bool came = changed.wait_for(lock, std::chrono::seconds(120), [&] {
            return std::ranges::find(lines, line) != lines.end();
        });
        EXPECT_TRUE(came) << line;
    }
    size_t index_of(const std::string& line) {
        const std::scoped_lock lock(mutex);
        return static_cast<size_t>(std::ranges::find(lines, line) - lines.begin());
    }
};

class Writer : public Job {
  public:
    Writer(JobSpec spec, std::string name, Diary& diary)
        : Job(std::move(spec)), name_(std::move(name)), diary_(diary) {}

    void queued() override { diary_.note(name_ + " queued"); }
    void started(uint32_t cached) override {
        cached_ = cached;
        diary_.note(name_ + " started");
        if (hold) hold();
    }
    bool tokens(std::span<const Token> tokens, std::span<const Likelihood> likelihoods,
                const Round& round) override {
        rounds.push_back(round);
        counts.push_back(tokens.size());
        EXPECT_EQ(likelihoods.size(), spec().likelihood_top ? tokens.size() : 0);
        const bool first = text.empty();
        if (first) diary_.note(name_ + " first");
        if (first && on_first) on_first();
        text.insert(text.end(), tokens.begin(), tokens.end());
        return text.size() < enough;
    }
    void ended(JobEnd how, const JobReport& given) override {
        end = how;
        report = given;
        diary_.note(name_ + " ended");
    }
    void wait() { diary_.wait_for(name_ + " ended"); }

    uint32_t cached_ = 0;
    size_t enough = SIZE_MAX;
    std::vector<Token> text;
    std::vector<Round> rounds;
    std::vector<size_t> counts;  // of tokens that each gave
    JobEnd end = JobEnd::kFailed;
    JobReport report;
    std::function<void()> hold, on_first;

  private:
    const std::string name_;
    Diary& diary_;
};

class JobsTest : public testing::Test {
  protected:
    std::shared_ptr<Writer> make(JobSpec spec, const std::string& name) {
        return std::make_shared<Writer>(std::move(spec), name, diary_);
    }
    Watchdog watchdog_{600, [](double) { ADD_FAILURE() << "a step hangs"; }};
    Diary diary_;
};

TEST_F(JobsTest, WriteTogetherWhatTheyWriteAlone) {
    Jobs jobs(bundled(), {.sequences_max = 5}, watchdog_, nullptr);
    std::vector<std::shared_ptr<Writer>> writers;
    for (uint32_t i = 0; i < 9; ++i) {
        const Mode mode = i % 2 == 0 ? Mode::kBase : Mode::kUltraspeed;
        writers.push_back(make(spec_of(i, mode, 8 + 3 * i), std::to_string(i)));
        ASSERT_EQ(jobs.submit(writers.back()), Jobs::Submitted::kYes);
    }
    for (uint32_t i = 0; i < writers.size(); ++i) {
        writers[i]->wait();
        EXPECT_EQ(writers[i]->text, alone(writers[i]->spec())) << i;
        const bool whole = writers[i]->text.size() == writers[i]->spec().tokens_max;
        EXPECT_EQ(writers[i]->end, whole ? JobEnd::kLimit : JobEnd::kModel);
    }
    EXPECT_TRUE(jobs.wait_done(60));
}

TEST_F(JobsTest, AQueueIsBoundedAndUltraspeedGoesFirst) {
    Jobs jobs(bundled(), {.sequences_max = 1, .queue_max = 2}, watchdog_, nullptr);
    std::mutex gate;
    gate.lock();
    const auto first = make(spec_of(1), "first");
    first->hold = [&] { const std::scoped_lock until_open(gate); };
    ASSERT_EQ(jobs.submit(first), Jobs::Submitted::kYes);
    diary_.wait_for("first started");
    const auto base = make(spec_of(2), "base");
    const auto fast = make(spec_of(3, Mode::kUltraspeed), "fast");
    EXPECT_FALSE(jobs.full());
    EXPECT_EQ(jobs.submit(base), Jobs::Submitted::kYes);
    EXPECT_EQ(jobs.submit(fast), Jobs::Submitted::kYes);
    EXPECT_TRUE(jobs.full());
    const auto late = make(spec_of(4), "late");
    EXPECT_EQ(jobs.submit(late), Jobs::Submitted::kFull);
    EXPECT_EQ(jobs.load().waiting, 2u);
    gate.unlock();
    base->wait();
    fast->wait();
    EXPECT_LT(diary_.index_of("fast started"), diary_.index_of("base started"));
    EXPECT_EQ(diary_.index_of("late queued"), diary_.lines.size());
    EXPECT_EQ(base->text, alone(base->spec()));
}

TEST_F(JobsTest, WhoeverLeavesStopsAtOnceAndNobodyElse) {
    Jobs jobs(bundled(), {.sequences_max = 3, .queue_max = 9}, watchdog_, nullptr);
    JobSpec endless = spec_of(6, Mode::kBase, 100'000);
    const auto stays = make(spec_of(7, Mode::kUltraspeed, 30), "stays");
    const auto writing = make(endless, "writing");
    JobSpec large = spec_of(8, Mode::kBase, 100'000);
    large.prompt = prompt(8, 60);
    ASSERT_LT(large.prompt.size(), 2048u);
    const auto reading = make(large, "reading");
    // Cancelled from within, where it is certain how far it is: before anything was read.
    reading->hold = [&] { reading->cancel(); };
    const auto waiting = make(spec_of(9), "waiting");
    waiting->cancel();
    for (const auto& one : {stays, writing, reading, waiting}) jobs.submit(one);
    diary_.wait_for("writing first");
    writing->cancel();
    for (const auto& one : {stays, writing, reading, waiting}) one->wait();
    EXPECT_EQ(stays->text, alone(stays->spec()));
    for (const auto& one : {reading, waiting}) {
        EXPECT_EQ(one->end, JobEnd::kCancelled);
        EXPECT_TRUE(one->text.empty());
    }
    EXPECT_LT(reading->report.stats.prompt_tokens, large.prompt.size());
    EXPECT_LT(writing->text.size(), 2048u);
    EXPECT_EQ(diary_.index_of("waiting started"), diary_.lines.size());
}

TEST_F(JobsTest, ALongPromptDoesNotStopThoseWhoWrite) {
    Jobs jobs(bundled(), {.sequences_max = 2}, watchdog_, nullptr);
    JobSpec endless = spec_of(3, Mode::kBase, 40);
    std::string loop;
    for (int i = 0; i < 20; ++i) loop += "x = 1\n";
    endless.prompt = bundled().encode(loop);
    JobSpec large = spec_of(8, Mode::kBase, 1);
    large.prompt = prompt(8, 50);
    const size_t pieces = (large.prompt.size() + 63) / 64;
    ASSERT_GT(pieces, 8u);
    ASSERT_LT(pieces, 30u);
    const auto writing = make(endless, "writing"), arriving = make(large, "arriving");
    // Between any two pieces of the prompt the other has a step. All of this is on one thread.
    size_t before = 0, after = 0;
    writing->on_first = [&] { jobs.submit(arriving); };
    arriving->hold = [&] { before = writing->text.size(); };
    arriving->on_first = [&] { after = writing->text.size(); };
    jobs.submit(writing);
    arriving->wait();
    writing->wait();
    EXPECT_GE(after, before + pieces - 1);
    EXPECT_EQ(writing->text, alone(writing->spec()));
    EXPECT_EQ(arriving->text, alone(large));
}

TEST_F(JobsTest, AConversationIsReadOnce) {
    Jobs jobs(bundled(), {.sequences_max = 2}, watchdog_, nullptr);
    const auto first = make(spec_of(1), "first");
    jobs.submit(first);
    first->wait();
    ASSERT_TRUE(jobs.wait_done(60));
    EXPECT_EQ(first->cached_, 0u);
    JobSpec next = spec_of(2, Mode::kUltraspeed);
    next.prompt = first->spec().prompt;
    next.prompt.insert(next.prompt.end(), first->text.begin(), first->text.end());
    const size_t known = next.prompt.size();
    const std::vector<Token> more = bundled().encode("\n\ndef main():\n");
    next.prompt.insert(next.prompt.end(), more.begin(), more.end());
    const auto second = make(next, "second");
    jobs.submit(second);
    second->wait();
    EXPECT_GE(second->cached_, known - 1);
    EXPECT_EQ(second->report.cached_tokens, second->cached_);
    EXPECT_EQ(second->text, alone(next));
}

TEST_F(JobsTest, WhatIsKeptIsBoundedAndTheOldestGoes) {
    const uint32_t size = static_cast<uint32_t>(spec_of(1).prompt.size()) + 24;
    Jobs jobs(bundled(), {.sequences_max = 1, .cache_tokens = 3 * size, .cache_texts = 3},
              watchdog_, nullptr);
    const auto cached = [&](uint32_t which, const std::string& name) {
        const auto job = make(spec_of(which), name);
        jobs.submit(job);
        job->wait();
        EXPECT_TRUE(jobs.wait_done(60));
        EXPECT_LE(jobs.load().cached_tokens, 3 * size);
        EXPECT_EQ(job->text, alone(job->spec()));
        return job->cached_;
    };
    cached(1, "a");
    cached(6, "b");  // as long, another text
    cached(11, "c");
    EXPECT_GT(cached(1, "a again"), 20u);
    cached(16, "d");
    EXPECT_GT(cached(1, "a is newer than the others"), 20u);
    EXPECT_LT(cached(6, "b had to go"), 20u);
}

TEST_F(JobsTest, EnoughIsEnough) {
    Jobs jobs(bundled(), {}, watchdog_, nullptr);
    const auto job = make(spec_of(4, Mode::kUltraspeed, 2000), "job");
    job->enough = 5;
    jobs.submit(job);
    job->wait();
    EXPECT_EQ(job->end, JobEnd::kEnough);
    EXPECT_LT(job->text.size(), 5u + 8u);
}

TEST_F(JobsTest, LikelihoodsComeWithTheirTokens) {
    Jobs jobs(bundled(), {}, watchdog_, nullptr);
    JobSpec spec = spec_of(5, Mode::kUltraspeed);
    spec.likelihood_top = 2;
    const auto job = make(spec, "job");
    jobs.submit(job);
    job->wait();
    EXPECT_EQ(job->text, alone(spec));
}

TEST_F(JobsTest, RoundsSayHowTokensCameAbout) {
    Jobs jobs(bundled(), {}, watchdog_, nullptr);
    uint32_t drafted = 0, copied = 0;
    for (const Speculate how : {Speculate::kOff, Speculate::kFixed, Speculate::kAuto}) {
        JobSpec spec = spec_of(3, how == Speculate::kOff ? Mode::kBase : Mode::kUltraspeed, 120);
        spec.prompt = bundled().encode("x = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n");
        spec.speculation.mode = how;
        const auto job = make(spec, std::to_string(static_cast<int>(how)));
        jobs.submit(job);
        job->wait();
        EXPECT_EQ(job->text, alone(spec));
        const Stats& stats = job->report.stats;
        uint32_t passes = 0, verified = 0, accepted = 0, by_drafter = 0, by_suffix = 0;
        for (size_t i = 0; i < job->rounds.size(); ++i) {
            const Round& round = job->rounds[i];
            passes += round.passes;
            verified += round.verified;
            accepted += round.accepted;
            by_drafter += round.drafts == Round::Drafts::kDrafter ? 1 : 0;
            by_suffix += round.drafts == Round::Drafts::kSuffix ? 1 : 0;
            EXPECT_EQ(round.passes, i > 0 ? 1u : 0u) << "the first token needs none";
            EXPECT_LE(round.accepted, round.verified);
            if (i + 1 < job->rounds.size()) {
                EXPECT_EQ(job->counts[i], round.accepted + 1);
            } else {
                EXPECT_LE(job->counts[i], round.accepted + 1) << "the end cuts";
            }
        }
        EXPECT_EQ(passes, stats.steps);
        EXPECT_EQ(by_drafter, stats.drafted);
        EXPECT_EQ(by_suffix, stats.copied);
        EXPECT_EQ(verified, std::accumulate(stats.verified.begin(), stats.verified.end(), 0u));
        EXPECT_EQ(accepted, std::accumulate(stats.accepted.begin(), stats.accepted.end(), 0u));
        drafted += by_drafter;
        copied += by_suffix;
        if (how == Speculate::kOff) {
            EXPECT_EQ(drafted + copied, 0u);
        }
    }
    EXPECT_GT(drafted, 0u);
    EXPECT_GT(copied, 0u);
}

TEST_F(JobsTest, AContextEnds) {
    Jobs jobs(bundled(), {}, watchdog_, nullptr);
    JobSpec spec = spec_of(1, Mode::kUltraspeed, 100'000);
    spec.prompt = prompt(1, 200);
    while (spec.prompt.size() < 2040) spec.prompt.push_back(spec.prompt[spec.prompt.size() - 20]);
    spec.prompt.resize(2047);
    const auto job = make(spec, "job");
    jobs.submit(job);
    job->wait();
    EXPECT_LE(job->text.size(), 1u);
    EXPECT_TRUE(job->end == JobEnd::kContext || job->end == JobEnd::kModel);
}

TEST_F(JobsTest, DrainingTakesNothingNewAndFinishes) {
    Jobs jobs(bundled(), {.sequences_max = 1}, watchdog_, nullptr);
    const auto running = make(spec_of(1), "running"), waiting = make(spec_of(2), "waiting");
    jobs.submit(running);
    jobs.submit(waiting);
    jobs.drain();
    EXPECT_EQ(jobs.submit(make(spec_of(3), "late")), Jobs::Submitted::kDraining);
    EXPECT_TRUE(jobs.wait_done(120));
    EXPECT_EQ(running->text, alone(running->spec()));
    EXPECT_EQ(waiting->text, alone(waiting->spec()));
}

TEST_F(JobsTest, CuttingEndsEverybody) {
    const auto running = make(spec_of(6, Mode::kBase, 100'000), "running");
    const auto waiting = make(spec_of(2), "waiting");
    {
        Jobs jobs(bundled(), {.sequences_max = 1}, watchdog_, nullptr);
        jobs.submit(running);
        diary_.wait_for("running first");
        jobs.submit(waiting);
        jobs.cut();
        EXPECT_TRUE(jobs.wait_done(120));
    }
    for (const auto& one : {running, waiting}) {
        one->wait();
        EXPECT_EQ(one->end, JobEnd::kCut);
    }
}

// Few tokens and many threads: what the thread sanitizer can afford of a model.
TEST_F(JobsTest, ThreadsMayAskLookAndLeaveAtAnyTime) {
    Jobs jobs(bundled(), {.sequences_max = 2}, watchdog_, nullptr);
    std::vector<std::shared_ptr<Writer>> writers;
    for (uint32_t i = 0; i < 3; ++i) {
        JobSpec spec = spec_of(i, Mode::kBase, 2);
        spec.prompt.resize(1);
        writers.push_back(make(spec, std::to_string(i)));
    }
    std::vector<std::thread> threads;
    for (const auto& writer : writers)
        threads.emplace_back([&] { EXPECT_EQ(jobs.submit(writer), Jobs::Submitted::kYes); });
    threads.emplace_back([&] { writers[0]->cancel(); });
    threads.emplace_back([&] {
        for (int i = 0; i < 100; ++i) EXPECT_LE(jobs.load().running, 2u + jobs.full());
    });
    for (std::thread& thread : threads) thread.join();
    for (const auto& writer : writers) writer->wait();
    EXPECT_TRUE(jobs.wait_done(120));
    EXPECT_LE(writers[1]->text.size(), 2u);
}

TEST(WatchdogTest, NoticesWorkThatDoesNotEnd) {
    std::mutex mutex;
    std::condition_variable changed;
    double hung_s = 0;
    Watchdog watchdog(0.05, [&](double seconds) {
        const std::scoped_lock lock(mutex);
        hung_s = seconds;
        changed.notify_all();
    });
    for (int i = 0; i < 20; ++i) {
        const Watchdog::Work work(watchdog);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // idle is no work
    std::unique_lock lock(mutex);
    EXPECT_EQ(hung_s, 0);
    const Watchdog::Work work(watchdog);
    EXPECT_TRUE(changed.wait_for(lock, std::chrono::seconds(60), [&] { return hung_s > 0; }));
    EXPECT_GE(hung_s, 0.05);
}

}  // namespace
}  // namespace tessera
