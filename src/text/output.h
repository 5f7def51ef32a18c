// The MiMo-V2 chat dialect, inward: a reply as it arrives, cut at any byte, into reasoning, content
// and tool calls. Owns the grammar of replies and what becomes of broken ones; knows no tokens.
//
//   reply    [space] ["<think>" reasoning "</think>"] content {call}
//   call     "<tool_call>" "<function=" NAME ">" {"<parameter=" NAME ">" VALUE "</parameter>"}
//            "</function>" "</tool_call>"         space may stand between the tags, not in VALUE
//
// Nothing the model writes is lost, whatever it writes:
//   * what begins like a call but names no function stays content, tags and all;
//   * inside a call that has begun, anything but the grammar (also the same parameter twice) ends
//     the call there, not whole, and is content from there on;
//   * "</tool_call>" also closes a call without "</function>", and the other way round;
//   * a reply that stops inside a value ends value and call there, not whole;
//   * dropped are only the tags, space between them and after a call where no content follows, and,
//     in a call, a tag or a name that the end cuts off.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/chat.h"

namespace tessera {

struct OutputEvent {
    enum class Kind : uint8_t {
        kReasoning,  // text: more of the reasoning
        kContent,    // text: more of the content
        kCallBegin,  // text: the function's name
        kArguments,  // text: more of the arguments; all pieces of a call are one JSON object
        kCallEnd,    // whole: the call was closed as the grammar says
    };
    Kind kind = Kind::kContent;
    std::string text = {};
    bool whole = true;
    size_t end = 0;  // of reasoning and content: bytes of the reply up to the end of this text

    // Where an event ends is no part of what it says: it moves with tags and space before it.
    bool operator==(const OutputEvent& other) const {
        return kind == other.kind && text == other.text && whole == other.whole;
    }
};

// What <tool_call> in a reply means.
enum class Calls : uint8_t {
    kParse,   // a call
    kAsText,  // content, tags and all: for somebody who offered no tools
};

// Whether the value of a parameter is a string, verbatim: unless its schema names types, none of
// them "string". `parameters`, the schema of all of them, is what references lead into.
bool is_string_value(const OrderedJson& parameter, const OrderedJson& parameters);

// One per reply. Events depend on the text alone: however it is cut, the same kinds come in the
// same order and their joined texts are the same. Text of reasoning and content is the reply's own,
// byte for byte: it stands there right before the event's `end`. Time is linear in the text.
class OutputParser {
  public:
    // `tools` as in render(): they say which parameters are not strings. Such a value is kept as
    // JSON if it is JSON (or Python's True, False, None, as the prompt spells them); every other
    // value becomes a string, verbatim.
    OutputParser(Opening opening, const OrderedJson& tools, Calls calls = Calls::kParse);

    // Reads more of the reply (UTF-8; special tokens shown, the end-of-turn token left out) and
    // gives what is certain now. Text that may yet turn out to be a tag is held back.
    std::vector<OutputEvent> push(std::string_view text);

    // The reply is over: gives what was held back. Push nothing afterwards.
    std::vector<OutputEvent> finish();

  private:
    using Kind = OutputEvent::Kind;
    enum class State : uint8_t {
        kOpening,        // nothing but space so far
        kReasoning,      //
        kContent,        //
        kCallTag,        // after <tool_call>
        kCallName,       // after <function=
        kBody,           // between parameters
        kParameterName,  // after <parameter=
        kValue,          // after <parameter=…>
        kCallClose,      // after </function>
        kAfterCall,      // after </tool_call>
    };

    bool step();
    bool step_content();
    bool step_tag();
    bool step_name();
    bool step_value();
    bool emit_until(std::string_view tag, Kind kind);
    void emit(Kind kind, std::string_view text);
    void begin_parameter();
    void end_value();
    void end_call(bool whole);
    void give_up();
    bool take_space();
    size_t position() const { return forgotten_ + read_; }
    std::string_view rest() const { return std::string_view(pending_).substr(read_); }

    State state_;
    Calls calls_;
    std::string pending_;  // read so far up to read_
    size_t read_ = 0;
    size_t forgotten_ = 0;              // bytes of the reply before pending_
    std::string held_;                  // tags and space that become content if the grammar breaks
    std::string name_;                  // of the function or parameter being read
    std::string function_;              // of the call that is open
    std::string value_;                 // of a parameter that is not a string
    bool as_string_ = true;             // whether the open value is streamed as one
    std::set<std::string> parameters_;  // of the open call, so far
    std::set<std::pair<std::string, std::string>> not_strings_;  // function, parameter
    std::vector<OutputEvent> events_;
};

}  // namespace tessera
