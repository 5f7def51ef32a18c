// A text being written by a program: where it stands, which tokens may come next, and which must.
// Knows bytes and tokens; no model.
//
// Which tokens fit is found in three ways. Inside a JSON string the vocabulary has been sorted
// beforehand. At every other place the tokens that begin there and do not return from the rule
// that it is in fit or not whatever is on the stack: they are found once for each place and kept
// (`LocalMasks`). What is left, the rests of tokens that do return, is walked with the stack at
// hand.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "grammar/program.h"
#include "grammar/vocabulary.h"

namespace tessera::grammar {

// What a place has in common for all stacks. Filled as it is asked for: one user at a time.
class LocalMasks {
  public:
    struct Boundary {
        Place place;  // kReturn or kLoop: what comes now is on the stack
        Trie rests;   // of the tokens that lead here
    };
    struct Local {
        std::vector<uint32_t> tokens;  // that fit; instead of them, if there are many,
        Bits bits;
        std::vector<Boundary> boundaries;
    };

    LocalMasks(std::shared_ptr<const Program> program,
               std::shared_ptr<const Vocabulary> vocabulary);

    const Program& program() const { return *program_; }
    const Vocabulary& vocabulary() const { return *vocabulary_; }

  private:
    friend class Matcher;
    static constexpr size_t kLocalsMax = 4096;

    std::shared_ptr<const Program> program_;
    std::shared_ptr<const Vocabulary> vocabulary_;
    std::vector<uint32_t> markers_;  // tokens of the program's markers; of unknown ones, kNone
    static constexpr uint32_t kNone = UINT32_MAX;
    std::unordered_map<Place, Local> locals_;
};

class Matcher {
  public:
    explicit Matcher(std::shared_ptr<LocalMasks> locals);

    // The tokens that may come next, as bits; valid until the next call. Never none: where the text
    // may end the tokens that end it are among them.
    std::span<const uint64_t> allowed();
    bool allows(uint32_t token);

    // The text goes on with `token`, which is allowed. One that ends the text changes nothing.
    void push(uint32_t token);

    // The text has begun with these bytes already. Before anything else; they fit.
    void skip(std::string_view bytes);

    // Takes back the last tokens, at most kBack of them.
    void pop(uint32_t count);
    static constexpr uint32_t kBack = 16;

    bool may_end() const;  // the text is whole

    // What has to come next, whatever else does: at most `bytes_max` bytes. If `token` is set
    // instead, that token.
    struct Forced {
        std::string bytes;
        std::optional<uint32_t> token;
    };
    Forced forced(size_t bytes_max);

  private:
    // Where a text may stand: a place and a stack. Of kReturn and kLoop with an empty stack, a
    // boundary or the end.
    struct Position {
        Place place;
        uint32_t stack;
        bool operator==(const Position&) const = default;
    };
    using Positions = std::vector<Position>;
    struct Frame {
        uint32_t value;  // a return address or a counter
        uint32_t below;
    };
    struct Known {
        Positions positions;
        Bits bits;
        uint64_t used = 0;
    };

    // More places at once than any sensible schema needs. Those beyond are given up: what the
    // others lead to is still valid. Only if none of the others goes on does the text end there.
    static constexpr size_t kPositionsMax = 256;
    static constexpr size_t kSeenMax = 8 * kPositionsMax;  // on the way to them, in a step
    static constexpr size_t kWorkMax = 1'000'000;          // positions that a walk may come to
    static constexpr size_t kDepthMax = 256;               // of a trie, and one more
    static constexpr size_t kFramesMax = 1 << 20;
    static constexpr size_t kKnownMax = 16;

    // Positions that a step has been at, so that each is looked at once and loops that take nothing
    // end.
    class Seen {
      public:
        void begin() { ++round_, count_ = 0; }
        bool add(const Position& position);

      private:
        struct Slot {
            Position position{};
            uint64_t round = 0;
        };
        std::vector<Slot> slots_;
        uint64_t round_ = 0;
        size_t count_ = 0;
    };

    // Sets of positions that walks have been at, and where a byte leads from them: walks meet the
    // same ones over and over. Only a cache: what it holds changes no answer.
    struct Set {
        Positions positions;
        uint32_t number;
        std::array<uint16_t, 256> next{};  // 1 + the number of another; 0: not known yet
    };
    static constexpr size_t kSetsMax = 4096;
    // Where a walk stands: in a known set, or, once there are too many, at positions of its own.
    struct Level {
        Set* set = nullptr;
        Positions own;
        const Positions& positions() const { return set != nullptr ? set->positions : own; }
    };
    void forget_sets();
    Set* set_of(const Positions& positions);
    void step(Level& from, uint8_t byte, Level& into);

    uint32_t push_frame(uint32_t value, uint32_t below);
    void enter(Place place, uint32_t stack, Positions& into);
    void step(std::span<const Position> from, uint8_t byte, Positions& into);
    void advance(Positions& now, std::string_view bytes);
    void step_text(const Position& at, const Instruction& text, uint8_t byte, Positions& into);
    template <typename See>
    void walk(const Trie& trie, const Positions& from, const See& see);
    void add_walk(const Trie& trie, const Positions& from, std::span<uint64_t> bits);
    const LocalMasks::Local& local(Place place);
    void add_local(const Position& at, std::span<uint64_t> bits);
    void add_text(const Position& at, std::span<uint64_t> bits);
    void compact();

    const Instruction& code(Place place) const { return locals_->program_->code[place]; }

    std::shared_ptr<LocalMasks> locals_;
    std::vector<Positions> history_;  // the last is now
    std::vector<Frame> frames_;       // 0: the empty stack
    std::unordered_map<uint64_t, uint32_t> frame_of_;
    std::vector<Known> known_;
    uint64_t clock_ = 0;

    // Kept from call to call to spare their memory.
    Seen seen_;
    std::vector<Position> entering_;
    std::vector<Level> levels_;
    Positions stepped_;
    std::deque<Set> sets_;
    std::unordered_multimap<uint64_t, uint32_t> set_numbers_;  // by hash
};

}  // namespace tessera::grammar
