#include "grammar/matcher.h"

#include <algorithm>
#include <map>
#include <optional>

#include "base/check.h"

namespace tessera::grammar {

LocalMasks::LocalMasks(std::shared_ptr<const Program> program,
                       std::shared_ptr<const Vocabulary> vocabulary)
    : program_(std::move(program)), vocabulary_(std::move(vocabulary)) {
    for (const std::string& marker : program_->markers)
        markers_.push_back(vocabulary_->marker(marker).value_or(kNone));
}

Matcher::Matcher(std::shared_ptr<LocalMasks> locals)
    : locals_(std::move(locals)), history_(1), frames_(1), known_(kKnownMax) {
    seen_.begin();
    enter(locals_->program_->start, 0, history_.back());
}

// ------------------------------------------------------------------ positions

uint32_t Matcher::push_frame(uint32_t value, uint32_t below) {
    const auto [at, fresh] = frame_of_.try_emplace(uint64_t{value} << 32 | below, 0);
    if (fresh) {
        at->second = static_cast<uint32_t>(frames_.size());
        frames_.push_back({value, below});
    }
    return at->second;
}

// True the first time since begin(); false also when enough has been seen.
bool Matcher::Seen::add(const Position& position) {
    constexpr size_t kSlots = 4 * kSeenMax;
    slots_.resize(kSlots);
    uint64_t hash = (uint64_t{position.place} << 32 | position.stack) * 0x9e3779b97f4a7c15u;
    for (size_t at = hash >> 52 & (kSlots - 1);; at = (at + 1) & (kSlots - 1)) {
        Slot& slot = slots_[at];
        if (slot.round == round_ && slot.position == position) return false;
        if (slot.round == round_) continue;
        if (count_ == kSeenMax) return false;
        slot = {position, round_};
        ++count_;
        return true;
    }
}

// Adds the positions at which a byte, a token or the end is awaited, from `place` on, but for those
// that seen_ has. An empty stack under a kReturn or a kLoop is the end or, where only a part of the
// stack is known, a boundary.
void Matcher::enter(Place place, uint32_t stack, Positions& into) {
    const auto takes = [&](const Instruction& one) {
        return one.op == Op::kByte || one.op == Op::kEdges || one.op == Op::kText ||
               one.op == Op::kMarker;
    };
    const auto add = [&](const Position& position) {
        if (into.size() < kPositionsMax) into.push_back(position);
    };
    std::vector<Position>& seen = entering_;
    seen.clear();
    const auto go = [&](Place next, uint32_t with) {
        const Position position{next, with};
        if (!seen_.add(position)) return;
        takes(code(next)) ? add(position) : seen.push_back(position);
    };
    go(place, stack);
    for (size_t i = 0; i < seen.size(); ++i) {
        const Position here = seen[i];
        const Instruction& one = code(here.place);
        const bool bare = here.stack == 0;
        const Frame top = frames_[here.stack];
        switch (one.op) {
            case Op::kSplit:
                for (uint32_t t = 0; t < one.count; ++t)
                    go(locals_->program_->targets[one.first + t], here.stack);
                break;
            case Op::kCall:
                go(one.first, push_frame(one.next, here.stack));
                break;
            case Op::kReturn:
                bare ? add(here) : go(top.value, top.below);
                break;
            case Op::kCount:
                go(one.next, push_frame(0, here.stack));
                break;
            case Op::kLoop: {
                if (bare) {
                    add(here);
                    break;
                }
                const uint32_t done = top.value;
                const uint32_t kept = one.high == kUnbounded ? std::max(one.low, 1u) : one.high;
                if (done < one.high)
                    go(done == 0 ? one.first : one.more,
                       push_frame(std::min(done + 1, kept), top.below));
                if (done >= one.low) go(one.next, top.below);
                break;
            }
            default:
                CHECK(false);
        }
    }
}

void Matcher::step(std::span<const Position> from, uint8_t byte, Positions& into) {
    seen_.begin();
    for (const Position& at : from) {
        const Instruction& one = code(at.place);
        if (one.op == Op::kByte) {
            if (one.byte == byte) enter(one.next, at.stack, into);
        } else if (one.op == Op::kEdges) {
            const std::span edges =
                std::span(locals_->program_->edges).subspan(one.first, one.count);
            for (const Edge& edge : edges)
                if (edge.bytes.has(byte)) enter(edge.target, at.stack, into);
        } else if (one.op == Op::kText) {
            step_text(at, one, byte, into);
        }
    }
}

void Matcher::step_text(const Position& at, const Instruction& text, uint8_t byte,
                        Positions& into) {
    const bool counted = counts(text);
    const Frame top = frames_[at.stack];
    const uint32_t done = counted ? top.value : 0;
    if (byte == '"') {
        if (done >= text.low) enter(text.next, counted ? top.below : at.stack, into);
        return;
    }
    if (byte < 0x20 || (counted && done >= text.high)) return;
    const Program& program = *locals_->program_;
    const Place inside = byte == '\\' ? program.escape : program.character[byte];
    if (byte >= 0x80 && inside == 0) return;
    const uint32_t kept = text.high == kUnbounded ? text.low : text.high;
    const uint32_t stack = counted ? push_frame(std::min(done + 1, kept), top.below) : at.stack;
    if (byte < 0x80 && byte != '\\') return enter(at.place, stack, into);
    enter(inside, push_frame(at.place, stack), into);
}

// ------------------------------------------------------------------ masks

// Goes through the strings of `trie` whose bytes lead somewhere from `from`; `see` is told each
// node and where it leads. What would take too long is left out, but for single bytes: fewer tokens
// are allowed then, and never none.
template <typename See>
void Matcher::walk(const Trie& trie, const Positions& from, const See& see) {
    const std::span nodes = trie.nodes();
    levels_.resize(kDepthMax + 1);
    if (sets_.size() > kSetsMax / 2) forget_sets();
    levels_[0].set = set_of(from);
    size_t work = 0;
    for (uint32_t i = 0; i < nodes.size();) {
        const Trie::Node& node = nodes[i];
        Level& here = levels_[node.depth + 1u];
        step(levels_[node.depth], node.byte, here);
        const Positions& positions = here.positions();
        work += 1 + positions.size();
        if (!positions.empty()) see(node, positions);
        i = positions.empty() || work > kWorkMax ? node.beyond : i + 1;
    }
}

void Matcher::step(Level& from, uint8_t byte, Level& into) {
    const uint16_t known = from.set != nullptr ? from.set->next[byte] : uint16_t{0};
    if (known != 0) {
        into.set = &sets_[known - 1u];
        return;
    }
    stepped_.clear();
    step(from.positions(), byte, stepped_);
    into.set = from.set != nullptr ? set_of(stepped_) : nullptr;
    if (into.set == nullptr) {
        into.own = stepped_;
    } else {
        from.set->next[byte] = static_cast<uint16_t>(into.set->number + 1);
    }
}

// Null if there are too many.
Matcher::Set* Matcher::set_of(const Positions& positions) {
    uint64_t hash = positions.size();
    for (const Position& at : positions)
        hash = (hash ^ (uint64_t{at.place} << 32 | at.stack)) * 0x9e3779b97f4a7c15u;
    const auto [begin, end] = set_numbers_.equal_range(hash);
    for (auto at = begin; at != end; ++at)
        if (sets_[at->second].positions == positions) return &sets_[at->second];
    if (sets_.size() == kSetsMax) return nullptr;
    const auto number = static_cast<uint32_t>(sets_.size());
    set_numbers_.emplace(hash, number);
    sets_.push_back({positions, number, {}});
    return &sets_.back();
}

void Matcher::forget_sets() {
    sets_.clear();
    set_numbers_.clear();
}

// Sets the bits of the tokens that it leads through.
void Matcher::add_walk(const Trie& trie, const Positions& from, std::span<uint64_t> bits) {
    walk(trie, from, [&](const Trie::Node& node, const Positions&) {
        for (const uint32_t token : trie.tokens(node)) set_bit(bits, token);
    });
}

const LocalMasks::Local& Matcher::local(Place place) {
    const auto [at, fresh] = locals_->locals_.try_emplace(place);
    LocalMasks::Local& local = at->second;
    if (!fresh) return local;
    const Vocabulary& vocabulary = *locals_->vocabulary_;
    const Trie& trie = vocabulary.all();
    std::map<Place, std::vector<Trie::Entry>> rests;
    walk(trie, {{place, 0}}, [&](const Trie::Node& node, const Positions& here) {
        const std::span ending = trie.tokens(node);
        local.tokens.insert(local.tokens.end(), ending.begin(), ending.end());
        for (const Position& position : here) {
            const Op op = code(position.place).op;
            if (op != Op::kReturn && op != Op::kLoop) continue;
            for (const uint32_t token : trie.tokens_below(node).subspan(node.count))
                rests[position.place].emplace_back(vocabulary.bytes(token).substr(node.depth + 1u),
                                                   token);
        }
    });
    if (local.tokens.size() > vocabulary.words()) {
        local.bits.resize(vocabulary.words());
        for (const uint32_t token : local.tokens) set_bit(local.bits, token);
        local.tokens = {};
    }
    for (auto& [boundary, entries] : rests)
        local.boundaries.push_back({boundary, Trie(std::move(entries))});
    return local;
}

void Matcher::add_local(const Position& at, std::span<uint64_t> bits) {
    const LocalMasks::Local& found = local(at.place);
    for (const uint32_t token : found.tokens) set_bit(bits, token);
    if (!found.bits.empty()) add_bits(bits, found.bits);
    for (const LocalMasks::Boundary& boundary : found.boundaries) {
        Positions beyond;
        seen_.begin();
        enter(boundary.place, at.stack, beyond);
        add_walk(boundary.rests, beyond, bits);
    }
}

void Matcher::add_text(const Position& at, std::span<uint64_t> bits) {
    const Instruction& text = code(at.place);
    const Vocabulary& vocabulary = *locals_->vocabulary_;
    if (!counts(text)) {
        vocabulary.add_plain(kUnbounded, bits);
        return add_walk(vocabulary.rests(), {at}, bits);
    }
    const Frame counter = frames_[at.stack];
    const uint32_t kept = text.high == kUnbounded ? text.low : text.high;
    const auto at_count = [&](uint64_t count) -> Positions {
        const auto value = static_cast<uint32_t>(std::min<uint64_t>(count, kept));
        return {{at.place, push_frame(value, counter.below)}};
    };
    const uint32_t room = text.high == kUnbounded ? kUnbounded : text.high - counter.value;
    vocabulary.add_plain(room, bits);
    std::span by_characters = vocabulary.rests_by_characters();
    if (counter.value >= text.low && room >= Vocabulary::kShort) {
        // No bound is in sight of a short token: the count may as well be the lowest of this kind,
        // whose walks are known.
        add_walk(vocabulary.short_rests(), at_count(text.low), bits);
        by_characters = vocabulary.long_rests();
    }
    // How many characters stand before the rest decides what the rest may be.
    for (uint32_t before = 0; before < by_characters.size() && before <= room; ++before)
        if (!by_characters[before].nodes().empty())
            add_walk(by_characters[before], at_count(uint64_t{counter.value} + before), bits);
}

std::span<const uint64_t> Matcher::allowed() {
    if (frames_.size() > kFramesMax) compact();
    if (locals_->locals_.size() > LocalMasks::kLocalsMax) locals_->locals_.clear();
    const Positions now = history_.back();
    ++clock_;
    Known* oldest = &known_[0];
    for (Known& known : known_) {
        if (known.used > 0 && known.positions == now) {
            known.used = clock_;
            return known.bits;
        }
        if (known.used < oldest->used) oldest = &known;
    }
    oldest->positions = now;
    oldest->used = clock_;
    Bits& bits = oldest->bits;
    bits.assign(locals_->vocabulary_->words(), 0);
    for (const Position& at : now) {
        const Instruction& one = code(at.place);
        if (one.op == Op::kReturn) {
            for (const uint32_t token : locals_->vocabulary_->ends()) set_bit(bits, token);
        } else if (one.op == Op::kMarker) {
            if (const uint32_t token = locals_->markers_[one.first]; token != LocalMasks::kNone)
                set_bit(bits, token);
        } else if (one.op == Op::kText) {
            add_text(at, bits);
        } else {
            add_local(at, bits);
        }
    }
    if (now.empty())
        for (const uint32_t token : locals_->vocabulary_->ends()) set_bit(bits, token);
    return bits;
}

bool Matcher::allows(uint32_t token) {
    return token < locals_->vocabulary_->size() && (allowed()[token / 64] >> token % 64 & 1) != 0;
}

// ------------------------------------------------------------------ the text

bool Matcher::may_end() const {
    return history_.back().empty() || std::ranges::any_of(history_.back(), [&](const Position& at) {
               return code(at.place).op == Op::kReturn;
           });
}

void Matcher::advance(Positions& now, std::string_view bytes) {
    Positions next;
    for (const char byte : bytes) {
        next.clear();
        step(now, static_cast<uint8_t>(byte), next);
        now.swap(next);
    }
}

void Matcher::skip(std::string_view bytes) {
    CHECK(history_.size() == 1);
    advance(history_.back(), bytes);
    CHECK(!history_.back().empty());
}

void Matcher::push(uint32_t token) {
    const Vocabulary& vocabulary = *locals_->vocabulary_;
    Positions now = history_.back();
    if (std::ranges::find(vocabulary.ends(), token) == vocabulary.ends().end() || !may_end()) {
        Positions taken;
        seen_.begin();
        for (const Position& at : now)
            if (code(at.place).op == Op::kMarker &&
                locals_->markers_[code(at.place).first] == token)
                enter(code(at.place).next, at.stack, taken);
        const std::string_view bytes = vocabulary.bytes(token);
        if (bytes.empty()) now.clear();
        advance(now, bytes);
        for (const Position& at : taken)
            if (std::ranges::find(now, at) == now.end()) now.push_back(at);
    }
    if (history_.size() > kBack) history_.erase(history_.begin());
    history_.push_back(std::move(now));
}

void Matcher::pop(uint32_t count) {
    CHECK(count < history_.size());
    history_.resize(history_.size() - count);
}

Matcher::Forced Matcher::forced(size_t bytes_max) {
    Forced forced;
    Positions now = history_.back(), next;
    while (forced.bytes.size() < bytes_max) {
        ByteSet bytes;
        for (const Position& at : now) {
            const Instruction& one = code(at.place);
            if (one.op == Op::kMarker && now.size() == 1 && forced.bytes.empty())
                forced.token = locals_->markers_[one.first];
            if (one.op != Op::kByte && one.op != Op::kEdges) return forced;
            if (one.op == Op::kByte) bytes = bytes | ByteSet::of(one.byte);
            for (uint32_t i = 0; one.op == Op::kEdges && i < one.count; ++i)
                bytes = bytes | locals_->program_->edges[one.first + i].bytes;
        }
        const int only = bytes.only();
        if (only < 0) return forced;
        forced.bytes.push_back(static_cast<char>(only));
        next.clear();
        step(now, static_cast<uint8_t>(only), next);
        now.swap(next);
    }
    return forced;
}

// Keeps the frames that the history needs.
void Matcher::compact() {
    const std::vector<Frame> before = std::move(frames_);
    frames_.assign(1, {});
    frame_of_.clear();
    std::unordered_map<uint32_t, uint32_t> moved = {{0, 0}};
    std::vector<uint32_t> chain;
    for (Positions& positions : history_) {
        for (Position& at : positions) {
            for (chain.clear(); !moved.contains(at.stack); at.stack = before[at.stack].below)
                chain.push_back(at.stack);
            uint32_t stack = moved[at.stack];
            for (; !chain.empty(); chain.pop_back()) {
                stack = push_frame(before[chain.back()].value, stack);
                moved[chain.back()] = stack;
            }
            at.stack = stack;
        }
    }
    for (Known& known : known_) known.used = 0;
    forget_sets();
}

}  // namespace tessera::grammar
