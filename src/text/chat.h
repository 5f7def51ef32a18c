// The MiMo-V2 chat dialect, outward: turns and tools into a prompt. Owns which bytes of a prompt
// are markers and which are somebody's text, so that text never becomes a marker. Knows no HTTP;
// what the model answers is read by output.h. The same dialect as Jinja: train/chat_template.jinja.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/python_json.h"
#include "text/tokenizer.h"

namespace tessera {

enum class Role : uint8_t { kSystem, kUser, kAssistant, kTool };

struct ToolCall {
    std::string name;
    OrderedJson arguments = OrderedJson::object();  // by parameter; anything else reads as {}
};

struct Turn {
    Role role = Role::kUser;
    std::string content;
    // Assistant only. Where it is not set and `content` holds "</think>", what stands before that
    // is the reasoning and what follows the last one is the content.
    std::optional<std::string> reasoning = std::nullopt;
    std::vector<ToolCall> tool_calls = {};  // assistant only
};

struct RenderOptions {
    bool add_generation_prompt = true;
    bool enable_thinking = true;  // off: the prompt ends with an empty, closed reasoning
    bool keep_all_reasoning =
        true;  // off: only assistant turns after the last user turn keep theirs
    // What the reply begins with, written by the caller: spellings of markers in it are markers.
    std::string reply_begins = {};
};

enum class Marker : uint8_t {
    kTurnBegin,
    kTurnEnd,
    kReasoningBegin,
    kReasoningEnd,
    kCallBegin,
    kCallEnd,
    kResultBegin,
    kResultEnd,
};
inline constexpr std::array<std::string_view, 8> kMarkerText = {
    "<|im_start|>", "<|im_end|>",   "<think>",         "</think>",
    "<tool_call>",  "</tool_call>", "<tool_response>", "</tool_response>"};

constexpr std::string_view marker_text(Marker marker) {
    return kMarkerText[static_cast<size_t>(marker)];
}

// Either one marker of the dialect, or text: no two pieces of text stand side by side.
struct Piece {
    std::optional<Marker> marker;
    std::string text;  // empty for a marker
};

// The prompt for `turns`. A first system turn replaces the default one; later ones stand where they
// are. `tools`: a list of {"type": "function", "function": {name, description, parameters, …}} or
// of the inner objects; null or empty for none. Any JSON is accepted: odd parts render oddly.
std::vector<Piece> render(std::span<const Turn> turns, const OrderedJson& tools = nullptr,
                          const RenderOptions& options = {});

// What a chat template would print: for people and oracles. Encoding *this* would let text become
// markers; ChatEncoder does not.
std::string to_text(std::span<const Piece> prompt);

// Where a reply to `prompt` begins: see output.h.
enum class Opening : uint8_t {
    kReasoningMayOpen,  // the prompt ends with the bare assistant prefix
    kReasoningClosed,   // it ends with an empty reasoning
};
Opening opening_of(std::span<const Piece> prompt);

// Prompts to ids. Immutable; serves many threads.
class ChatEncoder {
  public:
    // Throws Error naming the marker that is not an added token of `tokenizer`, which must outlive
    // this.
    explicit ChatEncoder(const Tokenizer& tokenizer);

    // A marker is its one token; text between markers is encoded as a whole, Specials::kAsText.
    std::vector<uint32_t> encode(std::span<const Piece> prompt) const;

    uint32_t id_of(Marker marker) const { return ids_[static_cast<size_t>(marker)]; }

  private:
    const Tokenizer* tokenizer_;
    std::array<uint32_t, kMarkerText.size()> ids_{};
};

}  // namespace tessera
