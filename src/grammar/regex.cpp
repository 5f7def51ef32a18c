#include "grammar/regex.h"

#include <memory>
#include <optional>

#include "base/error.h"

namespace tessera::grammar {
namespace {

constexpr size_t kPatternBytesMax = 4096;
constexpr uint32_t kDepthMax = 64;

// What a pattern says, as a tree: programs are built from the end, patterns read from the front.
struct Node {
    enum class Kind : uint8_t { kCharacter, kSequence, kChoice, kRepeat };
    Kind kind = Kind::kSequence;
    CodePoints points = {};        // kCharacter
    std::vector<Node> parts = {};  // kSequence, kChoice; of kRepeat one
    uint32_t low = 0, high = 0;    // kRepeat
};

const CodePoints kDigits = {{'0', '9'}};
const CodePoints kWords = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CodePoints kSpaces = {{'\t', '\r'},     {' ', ' '},       {0xa0, 0xa0},     {0x1680, 0x1680},
                            {0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f},
                            {0x3000, 0x3000}, {0xfeff, 0xfeff}};
const CodePoints kLineEnds = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

class Reader {
  public:
    explicit Reader(std::string_view text) : text_(text) {
        if (text.size() > kPatternBytesMax)
            fail("a pattern of {} bytes is too long: at most {}", text.size(), kPatternBytesMax);
    }

    struct Pattern {
        Node node;
        bool from_start = false, to_end = false;
    };

    // `^` and `$` only at the ends of the whole: of an alternative they would hold for it alone.
    Pattern read() {
        Pattern whole;
        whole.from_start = take('^');
        whole.node = choice(0);
        whole.to_end = take('$');
        if (more()) refuse(whole.to_end ? "$ before the end" : "an unbalanced )");
        if (whole.node.kind == Node::Kind::kChoice && (whole.from_start || whole.to_end))
            refuse("^ or $ beside |: write ^(?:a|b)$");
        return whole;
    }

  private:
    [[noreturn]] void refuse(std::string_view what) const {
        fail("the pattern {} has, at byte {}, {}, which is not supported", text_, at_, what);
    }

    bool more() const { return at_ < text_.size(); }
    bool take(char c) {
        if (!more() || text_[at_] != c) return false;
        ++at_;
        return true;
    }

    Node choice(uint32_t depth) {
        if (depth > kDepthMax) refuse("groups nested too deep");
        Node choice{Node::Kind::kChoice};
        do {
            choice.parts.push_back(sequence(depth));
        } while (take('|'));
        return choice.parts.size() == 1 ? std::move(choice.parts[0]) : choice;
    }

    Node sequence(uint32_t depth) {
        Node sequence{Node::Kind::kSequence};
        while (more() && text_[at_] != '|' && text_[at_] != ')' && text_[at_] != '$')
            sequence.parts.push_back(quantified(depth));
        return sequence;
    }

    Node quantified(uint32_t depth) {
        Node piece = atom(depth);
        while (more()) {
            uint32_t low = 0, high = kUnbounded;
            if (take('*')) {
            } else if (take('+')) {
                low = 1;
            } else if (take('?')) {
                high = 1;
            } else if (!(text_[at_] == '{' && bounds(low, high))) {
                break;
            }
            take('?');  // lazy: the same texts
            Node repeat{Node::Kind::kRepeat};
            repeat.low = low;
            repeat.high = high;
            repeat.parts.push_back(std::move(piece));
            piece = std::move(repeat);
        }
        return piece;
    }

    bool bounds(uint32_t& low, uint32_t& high) {
        ++at_;
        const auto first = number();
        if (!first) refuse("{ without a number: write \\{ for the character");
        low = high = *first;
        if (take(',')) high = number().value_or(kUnbounded);
        if (!take('}')) refuse("an open {");
        if (low > high) refuse("bounds in the wrong order");
        return true;
    }

    std::optional<uint32_t> number() {
        constexpr uint32_t kMost = 1'000'000;
        std::optional<uint32_t> value;
        while (more() && text_[at_] >= '0' && text_[at_] <= '9') {
            value = value.value_or(0) * 10 + static_cast<uint32_t>(text_[at_++] - '0');
            if (*value > kMost) refuse("a number that is too large");
        }
        return value;
    }

    static Node of(CodePoints points) {
        return {Node::Kind::kCharacter, normalized(std::move(points))};
    }

    Node atom(uint32_t depth) {
        const char c = text_[at_];
        switch (c) {
            case '(': {
                ++at_;
                if (take('?') && !take(':')) refuse("a group that begins with (?");
                Node inner = choice(depth + 1);
                if (!take(')')) refuse(more() ? "$ inside a group" : "an open (");
                return inner;
            }
            case '[':
                ++at_;
                return of(bracket());
            case '.':
                ++at_;
                return of(complement(kLineEnds));
            case '\\':
                ++at_;
                return of(escape(false));
            case '^':
                refuse("^ inside");
            case '*':
            case '+':
            case '?':
            case '{':
                refuse("a quantifier of nothing");
            default: {
                const uint32_t point = code_point();
                return of({{point, point}});
            }
        }
    }

    // The text is valid UTF-8: JSON was.
    uint32_t code_point() {
        const auto lead = static_cast<uint8_t>(text_[at_++]);
        const uint32_t length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
        uint32_t point = length == 1 ? lead : lead & (0x7fu >> length);
        for (uint32_t i = 1; i < length && more(); ++i)
            point = point << 6 | (static_cast<uint8_t>(text_[at_++]) & 0x3f);
        return point;
    }

    uint32_t hex(uint32_t digits) {
        uint32_t value = 0;
        for (uint32_t i = 0; i < digits; ++i, ++at_) {
            const char c = more() ? text_[at_] : '\0';
            const bool digit = c >= '0' && c <= '9';
            const char lower = static_cast<char>(c | 0x20);
            if (!digit && !(lower >= 'a' && lower <= 'f')) refuse("an escape without its digits");
            value = value * 16 + static_cast<uint32_t>(digit ? c - '0' : lower - 'a' + 10);
        }
        return value;
    }

    // After the backslash. A single character, or a class of them.
    CodePoints escape(bool in_bracket) {
        if (!more()) refuse("a backslash at the end");
        const char c = text_[at_++];
        const auto one = [](uint32_t point) { return CodePoints{{point, point}}; };
        switch (c) {
            case 'd':
                return kDigits;
            case 'D':
                return complement(kDigits);
            case 'w':
                return kWords;
            case 'W':
                return complement(kWords);
            case 's':
                return kSpaces;
            case 'S':
                return complement(kSpaces);
            case 't':
                return one('\t');
            case 'n':
                return one('\n');
            case 'r':
                return one('\r');
            case 'f':
                return one('\f');
            case 'v':
                return one('\v');
            case '0':
                return one(0);
            case 'x':
                return one(hex(2));
            case 'u':
                return one(hex(4));
            case 'b':
                if (in_bracket) return one('\b');
                [[fallthrough]];
            default:
                if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
                    --at_;
                    refuse(std::string("the escape \\") + c);
                }
                --at_;
                return one(code_point());
        }
    }

    // After [.
    CodePoints bracket() {
        const bool negated = take('^');
        CodePoints points;
        while (!take(']')) {
            if (!more()) refuse("an open [");
            const CodePoints first = bracket_item();
            const bool single = first.size() == 1 && first[0].first == first[0].second;
            if (single && at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']') {
                ++at_;
                const CodePoints last = bracket_item();
                if (last.size() != 1 || last[0].first != last[0].second ||
                    last[0].first < first[0].first)
                    refuse("a range in the wrong order");
                points.emplace_back(first[0].first, last[0].first);
            } else {
                points.insert(points.end(), first.begin(), first.end());
            }
        }
        points = normalized(std::move(points));
        return negated ? complement(points) : points;
    }

    CodePoints bracket_item() {
        if (take('\\')) return escape(true);
        if (!more()) refuse("an open [");
        const uint32_t point = code_point();
        return {{point, point}};
    }

    std::string_view text_;
    size_t at_ = 0;
};

class Writer {
  public:
    Writer(Builder& builder, Builder::Spelling spelling) : builder_(builder), spelling_(spelling) {}

    Place write(const Node& node, Place next) {
        switch (node.kind) {
            case Node::Kind::kCharacter:
                return builder_.character(node.points, spelling_, next);
            case Node::Kind::kSequence:
                for (size_t i = node.parts.size(); i-- > 0;) next = write(node.parts[i], next);
                return next;
            case Node::Kind::kChoice: {
                std::vector<Place> places;
                for (const Node& part : node.parts) places.push_back(write(part, next));
                return builder_.either(std::move(places));
            }
            case Node::Kind::kRepeat:
                return builder_.repeated([&](Place after) { return write(node.parts[0], after); },
                                         node.low, node.high, next);
        }
        return next;
    }

    Place anything(Place next) {
        return builder_.repeated(
            [&](Place after) { return builder_.character(complement({}), spelling_, after); }, 0,
            kUnbounded, next);
    }

  private:
    Builder& builder_;
    Builder::Spelling spelling_;
};

}  // namespace

Place pattern(Builder& builder, std::string_view pattern, Builder::Spelling spelling, Place next) {
    const Reader::Pattern read = Reader(pattern).read();
    Writer writer(builder, spelling);
    if (!read.to_end) next = writer.anything(next);
    next = writer.write(read.node, next);
    return read.from_start ? next : writer.anything(next);
}

}  // namespace tessera::grammar
