#include "checkpoint/pickle.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "base/check.h"
#include "base/error.h"
#include "checkpoint/excerpt.h"
#include "checkpoint/little_endian.h"

namespace tessera {
namespace {

using Kind = PickleValue::Kind;

constexpr size_t kBytesMax = size_t{64} << 10;
constexpr size_t kStackMax = 256;  // a saved tensor needs 12
constexpr size_t kMemoMax = 1024;  // and 15

constexpr std::string_view kOrderedDict = "collections OrderedDict";
constexpr std::string_view kRebuild = "torch._utils _rebuild_tensor_v2";
constexpr std::array kGlobals = {kOrderedDict, kRebuild, std::string_view("torch BFloat16Storage"),
                                 std::string_view("torch FloatStorage")};

enum class Op : uint8_t {
    proto = 0x80,
    stop = '.',
    mark = '(',
    empty_dict = '}',
    empty_tuple = ')',
    tuple = 't',
    tuple1 = 0x85,
    tuple2 = 0x86,
    tuple3 = 0x87,
    binint = 'J',
    binint1 = 'K',
    binint2 = 'M',
    long1 = 0x8a,
    newtrue = 0x88,
    newfalse = 0x89,
    binunicode = 'X',
    global = 'c',
    reduce = 'R',
    binpersid = 'Q',
    setitem = 's',
    setitems = 'u',
    binput = 'q',
    long_binput = 'r',
    binget = 'h',
    long_binget = 'j',
};

class Reader {
  public:
    Reader(std::span<const std::byte> bytes, std::string_view source)
        : bytes_(bytes), source_(source) {}

    Pickle read() {
        if (take<uint8_t>() != static_cast<uint8_t>(Op::proto) || take<uint8_t>() != 2) {
            refuse("expected pickle protocol 2, found another; save it with torch.save's defaults");
        }
        for (;;) {
            opcode_at_ = at_;
            const auto op = static_cast<Op>(take<uint8_t>());
            if (op == Op::stop) break;
            if (!number(op) && !structure(op) && !memory(op)) {
                refuse(fmt::format("opcode 0x{:02x} is not one that a saved tensor needs",
                                   static_cast<unsigned>(op)));
            }
        }
        if (at_ != bytes_.size()) refuse("bytes follow the end of the pickle");
        if (stack_.size() != 1 || !marks_.empty()) refuse("expected one value at the end");
        pickle_.root = stack_.front();
        return std::move(pickle_);
    }

  private:
    [[noreturn]] void refuse(std::string_view what) const {
        fail("{}: pickle, byte {}: {}; nothing of it was executed", source_, opcode_at_, what);
    }

    // -------------------------------------------------------------- bytes

    std::span<const std::byte> take_bytes(size_t count) {
        if (bytes_.size() - at_ < count) refuse("cut off");
        const std::span<const std::byte> taken = bytes_.subspan(at_, count);
        at_ += count;
        return taken;
    }

    template <typename T>
    T take() {
        return little_endian<T>(take_bytes(sizeof(T)), 0);
    }

    static std::string_view as_text(std::span<const std::byte> bytes) {
        return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    }

    std::string_view take_line() {
        const std::string_view rest = as_text(bytes_.subspan(at_));
        const size_t length = rest.find('\n');
        if (length == rest.npos) refuse("cut off");
        at_ += length + 1;
        return rest.substr(0, length);
    }

    // -------------------------------------------------------------- the stack

    PickleValue& value(uint32_t index) {
        CHECK(index < pickle_.values.size());
        return pickle_.values[index];
    }

    bool push(uint32_t index) {
        if (stack_.size() == kStackMax)
            refuse(fmt::format("more than {} values stacked", kStackMax));
        stack_.push_back(index);
        return true;
    }

    bool push(PickleValue made) {
        pickle_.values.push_back(std::move(made));
        return push(static_cast<uint32_t>(pickle_.values.size() - 1));
    }

    bool push_integer(int64_t integer) { return push(PickleValue{Kind::integer, integer, {}, {}}); }

    // A value under a mark belongs to what the mark began and cannot be reached by popping.
    uint32_t top() {
        if (stack_.size() <= (marks_.empty() ? 0 : marks_.back()))
            refuse("nothing left on the stack");
        return stack_.back();
    }

    uint32_t pop() {
        const uint32_t index = top();
        stack_.pop_back();
        return index;
    }

    std::vector<uint32_t> pop_count(size_t count) {
        std::vector<uint32_t> items(count);
        for (size_t i = count; i > 0; --i) items[i - 1] = pop();
        return items;
    }

    std::vector<uint32_t> pop_to_mark() {
        if (marks_.empty()) refuse("no mark on the stack");
        CHECK(marks_.back() <= stack_.size());
        const std::vector<uint32_t> items(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()),
                                          stack_.end());
        stack_.resize(marks_.back());
        marks_.pop_back();
        return items;
    }

    bool push_mark() {
        if (marks_.size() == kStackMax) refuse(fmt::format("more than {} marks", kStackMax));
        marks_.push_back(stack_.size());
        return true;
    }

    // -------------------------------------------------------------- opcodes; false: not one of
    // these

    bool number(Op op) {
        switch (op) {
            case Op::binint:
                return push_integer(static_cast<int32_t>(take<uint32_t>()));
            case Op::binint1:
                return push_integer(take<uint8_t>());
            case Op::binint2:
                return push_integer(take<uint16_t>());
            case Op::long1:
                return push_integer(take_long());
            case Op::newtrue:
                return push(PickleValue{Kind::boolean, 1, {}, {}});
            case Op::newfalse:
                return push(PickleValue{Kind::boolean, 0, {}, {}});
            default:
                return false;
        }
    }

    // Two's complement of any length, of which 64 bits are read.
    int64_t take_long() {
        const std::span<const std::byte> digits = take_bytes(take<uint8_t>());
        if (digits.size() > sizeof(int64_t)) {
            refuse(fmt::format("an integer of {} bytes, at most 8 are read", digits.size()));
        }
        const bool is_negative = !digits.empty() && std::to_integer<int>(digits.back()) >= 128;
        uint64_t bits = is_negative ? ~uint64_t{0} : 0;
        for (size_t i = 0; i < digits.size(); ++i) {
            bits &= ~(uint64_t{255} << 8 * i);
            bits |= std::to_integer<uint64_t>(digits[i]) << 8 * i;
        }
        return static_cast<int64_t>(bits);
    }

    bool structure(Op op) {
        switch (op) {
            case Op::mark:
                return push_mark();
            case Op::empty_dict:
                return push(PickleValue{Kind::dict, 0, {}, {}});
            case Op::empty_tuple:
                return push(PickleValue{Kind::tuple, 0, {}, {}});
            case Op::tuple:
                return push(PickleValue{Kind::tuple, 0, {}, pop_to_mark()});
            case Op::tuple1:
                return push(PickleValue{Kind::tuple, 0, {}, pop_count(1)});
            case Op::tuple2:
                return push(PickleValue{Kind::tuple, 0, {}, pop_count(2)});
            case Op::tuple3:
                return push(PickleValue{Kind::tuple, 0, {}, pop_count(3)});
            case Op::binunicode:
                return push(PickleValue{Kind::text, 0, as_text(take_bytes(take<uint32_t>())), {}});
            case Op::global:
                return push(PickleValue{Kind::global, 0, take_global(), {}});
            case Op::reduce:
                return call();
            case Op::binpersid:
                return push(PickleValue{Kind::persistent, 0, {}, pop_count(1)});
            case Op::setitem:
                return set_items(pop_count(2));
            case Op::setitems:
                return set_items(pop_to_mark());
            default:
                return false;
        }
    }

    std::string_view take_global() {
        const std::string_view module = take_line();
        const std::string name = fmt::format("{} {}", module, take_line());
        const auto known = std::ranges::find(kGlobals, name);
        if (known == kGlobals.end()) {
            refuse(
                fmt::format("{} is not one of the names that a saved tensor needs", excerpt(name)));
        }
        return *known;
    }

    bool call() {
        const uint32_t arguments = pop(), callee = pop();
        const PickleValue& called = value(callee);
        if (called.kind != Kind::global ||
            (called.text != kOrderedDict && called.text != kRebuild)) {
            refuse(fmt::format("a call of {} {}", kind_name(called.kind), excerpt(called.text)));
        }
        if (value(arguments).kind != Kind::tuple) refuse("arguments that are not a tuple");
        return push(PickleValue{Kind::call, 0, called.text, {arguments}});
    }

    bool set_items(const std::vector<uint32_t>& items) {
        PickleValue& target = value(top());
        if (target.kind != Kind::dict || items.size() % 2 != 0) {
            refuse(fmt::format("{} values set as items of a {}", items.size(),
                               kind_name(target.kind)));
        }
        target.items.insert(target.items.end(), items.begin(), items.end());
        return true;
    }

    bool memory(Op op) {
        switch (op) {
            case Op::binput:
                return put(take<uint8_t>());
            case Op::long_binput:
                return put(take<uint32_t>());
            case Op::binget:
                return get(take<uint8_t>());
            case Op::long_binget:
                return get(take<uint32_t>());
            default:
                return false;
        }
    }

    bool put(uint32_t slot) {
        if (slot >= kMemoMax) refuse(fmt::format("memo slot {}, at most {}", slot, kMemoMax - 1));
        memo_[slot] = top();
        return true;
    }

    bool get(uint32_t slot) {
        if (slot >= kMemoMax || !memo_[slot]) refuse(fmt::format("memo slot {} is empty", slot));
        return push(*memo_[slot]);
    }

    std::span<const std::byte> bytes_;
    std::string_view source_;
    size_t at_ = 0;
    size_t opcode_at_ = 0;
    Pickle pickle_;
    std::vector<uint32_t> stack_;
    std::vector<size_t> marks_;  // stack sizes
    std::array<std::optional<uint32_t>, kMemoMax> memo_;
};

}  // namespace

std::string_view kind_name(PickleValue::Kind kind) {
    switch (kind) {
        case Kind::integer:
            return "integer";
        case Kind::boolean:
            return "boolean";
        case Kind::text:
            return "text";
        case Kind::tuple:
            return "tuple";
        case Kind::dict:
            return "dict";
        case Kind::global:
            return "name";
        case Kind::persistent:
            return "persistent id";
        case Kind::call:
            return "call";
    }
    CHECK(false);
    return {};
}

Pickle read_pickle(std::span<const std::byte> bytes, std::string_view source) {
    if (bytes.size() > kBytesMax) {
        fail("{}: a pickle of {} bytes, at most {} are accepted", source, bytes.size(), kBytesMax);
    }
    return Reader(bytes, source).read();
}

}  // namespace tessera
