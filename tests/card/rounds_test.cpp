// The door with a card's backend, where no card is: the CPU machine runs its steps and makes its
// rounds. Sessions have to write what they write on the CPU, token for token, whatever runs ahead
// of them.
#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/mask_embedding.h"
#include "runtime/host_runner.h"
#include "tessera/session.h"

#include "engine/gpu.h"
#include "support/seeded.h"
#include "support/texts.h"

namespace tessera {
namespace {

using test::kOff;
using test::kPrompts;
using test::take;
using test::written;

uint64_t rounds_begun = 0, rounds_stopped = 0;

// A card with weights of its own: the door's are let go once it has them.
class HostCard : public test::HostRunner {
  public:
    HostCard(std::unique_ptr<CpuWeights> weights, std::unique_ptr<CpuMachine> machine)
        : HostRunner(*machine), weights_(std::move(weights)), machine_(std::move(machine)) {}

    void start_rounds(const gpu::RoundsInput& input) override {
        ++rounds_begun;
        HostRunner::start_rounds(input);
    }
    void stop_rounds() override {
        ++rounds_stopped;
        HostRunner::stop_rounds();
    }

  private:
    std::unique_ptr<CpuWeights> weights_;
    std::unique_ptr<CpuMachine> machine_;
};

std::unique_ptr<gpu::Runner> make_host_card(const PackedWeights&, const PackedWeights* drafter,
                                            uint32_t context) {
    static const Checkpoint checkpoint = open_checkpoint(TESSERA_MODEL);
    const std::filesystem::path folder = std::filesystem::path(TESSERA_MODEL) / "dflash";
    static const Checkpoint files = open_checkpoint(folder);
    const Shape shape = parse_shape(checkpoint.config, "bundled");
    const PackOptions how{
        .ranks = 1, .threads = 2, .progress = {}, .drop = {}, .fp8 = Fp8::unpack_in_cache};
    auto weights = std::make_unique<CpuWeights>();
    weights->target = pack_weights(bind(checkpoint, shape), how);
    if (drafter != nullptr) {
        const MappedFile mask(folder / "mask_embedding.pt");
        weights->drafter = std::make_unique<PackedWeights>(
            pack_drafter(bind_drafter(files, parse_drafter_shape(files.config, shape, "bundled"),
                                      parse_mask_embedding(mask.bytes(), "mask_embedding.pt")),
                         weights->target, how));
    }
    CpuOptions options;
    options.workers = 2;
    options.context = context;
    options.pin = false;
    auto machine = std::make_unique<CpuMachine>(weights->target, options, weights->drafter.get());
    return std::make_unique<HostCard>(std::move(weights), std::move(machine));
}

constexpr GpuCode kHostCode = {
    .no_card = [] { return std::string(); },
    .find_card =
        [] { return gpu::Card{"the CPU in a card's place", 1, 0, 1ull << 40, 1ull << 40, 9}; },
    .make_runner = make_host_card,
};

Model load(Device device, uint32_t context = 0) {
    LoadOptions options;
    options.device = device;
    options.context = context;
    options.threads = 2;
    return Model::load(TESSERA_MODEL, options);
}
const Model& on_card() {
    static const Model model = load(Device::kGpu);
    return model;
}
const Model& on_cpu() {
    static const Model model = load(Device::kCpu);
    return model;
}

// Every way, in turns.
constexpr Speculation kWays[] = {
    kOff, {Speculate::kFixed}, {Speculate::kAuto}, {Speculate::kFixed, 3}, {Speculate::kAuto, 2}};

std::vector<Sampling> samplings() {
    std::vector<Sampling> all(6);
    all[1].temperature = 0.7f;
    for (size_t i = 2; i < all.size(); ++i) all[i].temperature = 1;
    all[3].top_p = 0.9f;
    all[4].min_p = 0.05f;
    all[5].top_k = 40;  // the host's: the card does not sort
    for (size_t i = 1; i < all.size(); ++i) all[i].seed = 11 + i;
    return all;
}

TEST(Rounds, WriteWhatStepsWrite) {
    const uint64_t before = rounds_begun;
    size_t turn = 0;
    for (const char* prompt : {kPrompts[0], kPrompts[5]}) {
        for (const Sampling& sampling : samplings()) {
            const std::vector<Token> expected = written(on_cpu(), prompt, sampling, kOff, 60);
            for (int i = 0; i < 2; ++i) {
                const Speculation& mode = kWays[turn++ % std::size(kWays)];
                EXPECT_EQ(written(on_card(), prompt, sampling, mode, 60), expected)
                    << prompt << ", T " << sampling.temperature << ", mode "
                    << static_cast<int>(mode.mode) << ", max " << mode.max_draft;
            }
        }
    }
    EXPECT_GT(rounds_begun - before, 15u);
}

// Figures are those of the same rounds made step by step.
TEST(Rounds, AreCounted) {
    for (const Speculation& mode : {kWays[0], kWays[1]}) {
        Stats stats[2];
        for (const Model* model : {&on_cpu(), &on_card()}) {
            Session session(*model, {}, mode);
            session.append(model->encode(kPrompts[3]));
            take(session, 50);
            while (session.ready() > 0) session.next();
            stats[model == &on_card()] = session.stats();
        }
        EXPECT_EQ(stats[1].tokens, stats[0].tokens);
        EXPECT_EQ(stats[1].steps, stats[0].steps);
        EXPECT_EQ(stats[1].drafted, stats[0].drafted);
        EXPECT_EQ(stats[1].hash, stats[0].hash);
        EXPECT_EQ(stats[1].accepted, stats[0].accepted);
        EXPECT_EQ(stats[1].verified, stats[0].verified);
        EXPECT_NEAR(stats[1].experts, stats[0].experts, 1e-6);
        EXPECT_NEAR(stats[1].bytes / stats[0].bytes, 1, 0.01);
    }
}

// What a session may be asked at any time, with rounds running ahead of it or not: of the card and
// of the CPU, the same tokens and lengths.
TEST(Rounds, AnythingMayComeBetween) {
    const Model card = load(Device::kGpu, 300), cpu = load(Device::kCpu, 300);
    uint64_t drawn = 0;
    const auto draw = [&](uint32_t below) {
        return static_cast<uint32_t>(test::splitmix64(9, drawn++) % below);
    };
    struct Pair {
        Session card, cpu;
    };
    std::vector<Pair> pairs;
    const std::vector<Sampling> all = samplings();
    for (size_t i = 0; i < 3; ++i) {
        const Speculation& mode = kWays[i % 3];
        pairs.push_back({Session(card, all[i], mode), Session(cpu, all[i], mode)});
        for (Session* const s : {&pairs.back().card, &pairs.back().cpu})
            s->append(cpu.encode(kPrompts[i]));
    }
    for (uint32_t turn = 0; turn < 70; ++turn) {
        SCOPED_TRACE(turn);
        Pair& pair = pairs[draw(3)];
        const auto both = [&](const auto& what) {
            what(pair.card);
            what(pair.cpu);
            ASSERT_TRUE(std::ranges::equal(pair.card.text(), pair.cpu.text()));
        };
        switch (draw(8)) {
            case 0: {  // another turn
                const uint32_t count = std::min(draw(20) + 1, pair.cpu.room());
                std::vector<Token> tokens;
                for (uint32_t i = 0; i < count; ++i) tokens.push_back(draw(4000));
                if (count > 0) both([&](Session& s) { s.append(tokens); });
                break;
            }
            case 1: {  // an earlier one, or the same text
                std::vector<Token> wanted(pair.cpu.text().begin(), pair.cpu.text().end());
                if (draw(2) > 0) wanted.resize(1 + draw(static_cast<uint32_t>(wanted.size())));
                wanted.push_back(draw(4000));
                if (wanted.size() > 290) wanted.resize(40);
                both([&](Session& s) {
                    const uint32_t kept = s.reuse(wanted);
                    s.append(std::span(wanted).subspan(kept));
                });
                break;
            }
            case 2: {  // another answer on the same memory
                const Sampling& sampling = all[draw(6)];
                const Speculation& mode = kWays[draw(5)];
                both([&](Session& s) { s.restart(sampling, mode); });
                break;
            }
            case 3: {  // company
                std::vector<Session*> sessions;
                for (Pair& one : pairs) {
                    if (one.cpu.room() == 0) continue;
                    sessions.push_back(&one.card);
                    one.cpu.next();
                }
                if (!sessions.empty()) Session::step(sessions);
                for (Session* const s : sessions) s->next();
                break;
            }
            case 4:
                if (draw(3) > 0 || pair.cpu.room() == 0) break;
                both([](Session& s) { s.watch_likelihood(2); });
                both([](Session& s) { s.next(); });
                EXPECT_EQ(pair.card.likelihood().log_probability,
                          pair.cpu.likelihood().log_probability);
                both([&](Session& s) { s.restart(all[0], kWays[1]); });
                break;
            default:
                for (uint32_t i = draw(30); i > 0 && pair.cpu.room() > 0; --i)
                    ASSERT_EQ(pair.card.next(), pair.cpu.next());
                break;
        }
        for (const Pair& one : pairs)
            ASSERT_TRUE(std::ranges::equal(one.card.text(), one.cpu.text()));
    }
    EXPECT_GT(rounds_stopped, 5u);
}

// Who wants to see logits behind a round gets them, and the text goes on as it would have.
TEST(Rounds, MakeWayForWhoeverLooks) {
    for (const Speculation& mode : kWays) {
        Session card(on_card(), {}, mode), cpu(on_cpu(), {}, mode);
        for (Session* const s : {&card, &cpu}) s->append(on_cpu().encode(kPrompts[3]));
        for (uint32_t looks = 0; looks < 3; ++looks) {
            for (int i = 0; i < 12 || card.ready() > 0; ++i) ASSERT_EQ(card.next(), cpu.next());
            // Likelihoods are of the steps that follow.
            card.watch_likelihood(2);
            while (cpu.ready() > 0) ASSERT_EQ(card.next(), cpu.next());
            cpu.watch_likelihood(2);
            ASSERT_EQ(card.next(), cpu.next());
            EXPECT_EQ(card.likelihood().log_probability, cpu.likelihood().log_probability);
            card.restart({}, mode);
            cpu.restart({}, mode);
        }
    }
}

// A context is filled to its last token.
TEST(Rounds, FillTheContextAndNoMore) {
    const Model model = load(Device::kGpu, 70);
    std::vector<std::vector<Token>> texts;
    for (const Speculation& mode : kWays) {
        Session session(model, {}, mode);
        session.append(model.encode(kPrompts[0]));
        std::vector<Token>& text = texts.emplace_back();
        while (session.room() > 0) text.push_back(session.next());
        EXPECT_EQ(session.text().size(), 70u);
        EXPECT_EQ(text, texts[0]);
    }
}

}  // namespace

// In the place of the build's own.
const GpuCode* const kGpuCode = &kHostCode;

}  // namespace tessera
