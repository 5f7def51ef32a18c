// What a tokenizer.json may not say, and what it says when it does: the file, the key, the value.
#include "text/tokenizer_file.h"

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/error.h"

#include "support.h"

namespace tessera {
namespace {

// The character that stands for a byte in the byte-level alphabet.
std::string symbol_of(uint32_t byte) {
    static const auto symbols = [] {
        std::vector<std::string> made(256);
        uint32_t next = 0x100;
        for (uint32_t b = 0; b < 256; ++b) {
            const bool own = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
            const uint32_t code = own ? b : next++;
            made[b] = code < 0x80 ? std::string(1, static_cast<char>(code))
                                  : std::string{static_cast<char>(0xc0 | code >> 6),
                                                static_cast<char>(0x80 | (code & 63))};
        }
        return made;
    }();
    return symbols[byte];
}

// The smallest file worth reading: 256 bytes, "ab", "abc" and one marker.
OrderedJson small_file() {
    OrderedJson file = OrderedJson::parse(R"({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 258, "content": "<|end|>", "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+|."}, "behavior": "Isolated",
             "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
             "use_regex": false}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                  "byte_fallback": false, "ignore_merges": false, "vocab": {},
                  "merges": [["a", "b"], "ab c"]}
    })");
    OrderedJson& vocab = file["model"]["vocab"];
    for (uint32_t byte = 0; byte < 256; ++byte) vocab[symbol_of(byte)] = byte;
    vocab["ab"] = 256;
    vocab["abc"] = 257;
    return file;
}

std::string refusal_of(const std::string& json) {
    try {
        Tokenizer::parse(json, "some.json");
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

TEST(TokenizerFile, ReadsTheSmallestFile) {
    const Tokenizer tokenizer = Tokenizer::parse(small_file().dump(), "some.json");
    EXPECT_EQ(tokenizer.vocab_size(), 259u);
    EXPECT_EQ(tokenizer.encode("abc ab<|end|>", Specials::kParse),
              (std::vector<uint32_t>{257, ' ', 256, 258}));
    EXPECT_EQ(tokenizer.encode("<|end|>", Specials::kAsText).size(), 7u);
}

TEST(TokenizerFile, OlderAndPlainerFilesReadToo) {
    OrderedJson file = small_file();
    file.erase("version");
    file.erase("truncation");
    file.erase("added_tokens");
    file["normalizer"] = nullptr;
    file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
    file["model"]["merges"] = {"a b", "ab c"};
    file["model"]["ignore_merges"] = true;
    file["model"]["vocab"]["zzz"] = 300;  // no merge makes it, and ids may leave gaps
    const Tokenizer tokenizer = Tokenizer::parse(file.dump(), "some.json");
    EXPECT_EQ(tokenizer.vocab_size(), 301u);
    EXPECT_EQ(tokenizer.encode("zzz", Specials::kAsText), (std::vector<uint32_t>{300}));
    EXPECT_EQ(tokenizer.token_bytes(299), "");
    EXPECT_EQ(tokenizer.encode("abc's", Specials::kAsText),
              (std::vector<uint32_t>{257, '\'', 's'}));
    EXPECT_EQ(tokenizer.encode("e\u0301", Specials::kAsText),
              (std::vector<uint32_t>{'e', 0xcc, 0x81}));
}

struct Case {
    const char* named;  // what the message must contain, besides the file
    std::function<void(OrderedJson&)> change;
};

TEST(TokenizerFile, RefusalsNameTheFileAndTheKey) {
    const auto model = [](OrderedJson& file) -> OrderedJson& { return file["model"]; };
    const auto step = [](OrderedJson& file, size_t i) -> OrderedJson& {
        return file["pre_tokenizer"]["pretokenizers"][i];
    };
    const auto added = [](OrderedJson& file) -> OrderedJson& { return file["added_tokens"][0]; };
    const std::vector<Case> cases = {
        {"the file is", [](auto& f) { f = OrderedJson::array(); }},
        {"the file is", [](auto& f) { f = 7; }},
        {"\"surprise\"", [](auto& f) { f["surprise"] = 1; }},
        {"version", [](auto& f) { f["version"] = "2.0"; }},
        {"version", [](auto& f) { f["version"] = 1.0; }},
        {"truncation",
         [](auto& f) {
             f["truncation"] = {{"max_length", 5}};
         }},
        {"padding", [](auto& f) { f["padding"] = true; }},
        {"post_processor",
         [](auto& f) {
             f["post_processor"] = {{"type", "TemplateProcessing"}};
         }},
        {"post_processor", [](auto& f) { f["post_processor"] = "ByteLevel"; }},
        {"decoder", [](auto& f) { f.erase("decoder"); }},
        {"decoder.type", [](auto& f) { f["decoder"]["type"] = "WordPiece"; }},
        // The model.
        {"model", [](auto& f) { f.erase("model"); }},
        {"model is", [](auto& f) { f["model"] = "BPE"; }},
        {"model.type", [&](auto& f) { model(f)["type"] = "Unigram"; }},
        {"model.type", [&](auto& f) { model(f).erase("type"); }},
        {"model.dropout", [&](auto& f) { model(f)["dropout"] = 0.1; }},
        {"model.unk_token", [&](auto& f) { model(f)["unk_token"] = "a"; }},
        {"model.end_of_word_suffix", [&](auto& f) { model(f)["end_of_word_suffix"] = "</w>"; }},
        {"model.fuse_unk", [&](auto& f) { model(f)["fuse_unk"] = 1; }},
        {"model.byte_fallback", [&](auto& f) { model(f)["byte_fallback"] = true; }},
        {"model.ignore_merges", [&](auto& f) { model(f)["ignore_merges"] = "yes"; }},
        {"\"extra\"", [&](auto& f) { model(f)["extra"] = 0; }},
        // The vocabulary.
        {"model.vocab", [&](auto& f) { model(f).erase("vocab"); }},
        {"model.vocab",
         [&](auto& f) {
             model(f)["vocab"] = {"a", "b"};
         }},
        {"model.vocab lacks \"z\"", [&](auto& f) { model(f)["vocab"].erase("z"); }},
        {"the id of \"ab\" is -1", [&](auto& f) { model(f)["vocab"]["ab"] = -1; }},
        {"the id of \"ab\" is 1.5", [&](auto& f) { model(f)["vocab"]["ab"] = 1.5; }},
        {"the id of \"ab\" is \"1\"", [&](auto& f) { model(f)["vocab"]["ab"] = "1"; }},
        {"the id of \"ab\" is null", [&](auto& f) { model(f)["vocab"]["ab"] = nullptr; }},
        {"4294967296", [&](auto& f) { model(f)["vocab"]["ab"] = uint64_t{1} << 32; }},
        {"18446744073709551615", [&](auto& f) { model(f)["vocab"]["ab"] = UINT64_MAX; }},
        {"below 5132", [&](auto& f) { model(f)["vocab"]["ab"] = 5132; }},
        {"the id 5 to two", [&](auto& f) { model(f)["vocab"]["ab"] = 5; }},
        {"\"a b\"", [&](auto& f) { model(f)["vocab"]["a b"] = 300; }},
        {"\"\"", [&](auto& f) { model(f)["vocab"][""] = 300; }},
        {"\\u4f60", [&](auto& f) { model(f)["vocab"]["你"] = 300; }},
        // The merges.
        {"model.merges", [&](auto& f) { model(f).erase("merges"); }},
        {"model.merges",
         [&](auto& f) {
             model(f)["merges"] = {{"a b", 1}};
         }},
        {"merges[0] is 7", [&](auto& f) { model(f)["merges"][0] = 7; }},
        {"merges[0] is \"ab\"", [&](auto& f) { model(f)["merges"][0] = "ab"; }},
        {"merges[0] is \"a b c\"", [&](auto& f) { model(f)["merges"][0] = "a b c"; }},
        {"merges[0] is \"\"", [&](auto& f) { model(f)["merges"][0] = ""; }},
        {"merges[0] is [\"a\"]", [&](auto& f) { model(f)["merges"][0] = {"a"}; }},
        {"merges[0]",
         [&](auto& f) {
             model(f)["merges"][0] = OrderedJson::array({"a", 2});
         }},
        {"merges[0]",
         [&](auto& f) {
             model(f)["merges"][0] = OrderedJson::array({"a", ""});
         }},
        {"merges[0] needs the token \"ac\"",
         [&](auto& f) {
             model(f)["merges"][0] = OrderedJson::array({"a", "c"});
         }},
        {"merges[0] needs the token \"xyz\"",
         [&](auto& f) {
             model(f)["merges"][0] = OrderedJson::array({"xyz", "c"});
         }},
        {"merges[2]", [&](auto& f) { model(f)["merges"].push_back("a b"); }},
        // The normalizer and the pre-tokenizer.
        {"normalizer.type", [](auto& f) { f["normalizer"]["type"] = "NFKC"; }},
        {"normalizer", [](auto& f) { f["normalizer"] = "NFC"; }},
        {"pre_tokenizer", [](auto& f) { f.erase("pre_tokenizer"); }},
        {"pre_tokenizer.type", [](auto& f) { f["pre_tokenizer"]["type"] = "Whitespace"; }},
        {"pretokenizers", [](auto& f) { f["pre_tokenizer"]["pretokenizers"] = {1}; }},
        {"pretokenizers", [](auto& f) { f["pre_tokenizer"].erase("pretokenizers"); }},
        {"pretokenizers[0].type", [&](auto& f) { step(f, 0)["type"] = "Digits"; }},
        {"pretokenizers[0].behavior", [&](auto& f) { step(f, 0)["behavior"] = "Removed"; }},
        {"pretokenizers[0].invert", [&](auto& f) { step(f, 0)["invert"] = true; }},
        {"pretokenizers[0].pattern",
         [&](auto& f) {
             step(f, 0)["pattern"] = {{"String", " "}};
         }},
        {"pretokenizers[0].pattern", [&](auto& f) { step(f, 0)["pattern"]["Regex"] = 5; }},
        {"pattern does not compile", [&](auto& f) { step(f, 0)["pattern"]["Regex"] = "(a"; }},
        {"pattern does not compile", [&](auto& f) { step(f, 0)["pattern"]["Regex"] = "\\C"; }},
        {"can match nothing", [&](auto& f) { step(f, 0)["pattern"]["Regex"] = "a*"; }},
        {"can match nothing", [&](auto& f) { step(f, 0)["pattern"]["Regex"] = ""; }},
        {"at most 16384",
         [&](auto& f) { step(f, 0)["pattern"]["Regex"] = std::string(20'000, 'a'); }},
        {"pretokenizers[1].use_regex", [&](auto& f) { step(f, 1)["use_regex"] = true; }},
        {"pretokenizers[1].add_prefix_space",
         [&](auto& f) { step(f, 1)["add_prefix_space"] = true; }},
        // The added tokens.
        {"added_tokens",
         [](auto& f) {
             f["added_tokens"] = {{"id", 258}};
         }},
        {"added_tokens[0]",
         [](auto& f) {
             f["added_tokens"][0] = {{"content", "x"}, {"id", 258}};
         }},
        {"id of null is null", [](auto& f) { f["added_tokens"][0] = 7; }},
        {"added_tokens[0].lstrip", [&](auto& f) { added(f)["lstrip"] = true; }},
        {"added_tokens[0].single_word", [&](auto& f) { added(f)["single_word"] = true; }},
        {"added_tokens[0].normalized", [&](auto& f) { added(f)["normalized"] = true; }},
        {"added_tokens[0].special", [&](auto& f) { added(f)["special"] = "true"; }},
        {"added_tokens[0].content", [&](auto& f) { added(f)["content"] = ""; }},
        {"added_tokens[0].content", [&](auto& f) { added(f)["content"] = 5; }},
        {"added_tokens[0].content", [&](auto& f) { added(f)["content"] = std::string(257, 'x'); }},
        {"added_tokens[0].id is 256, which another", [&](auto& f) { added(f)["id"] = 256; }},
        {"4000000000", [&](auto& f) { added(f)["id"] = 4'000'000'000u; }},
        {"is -1", [&](auto& f) { added(f)["id"] = -1; }},
        // As a merge of "\u0120" and "a" it would be " a"; as an added token, what it says.
        {"\\u0120a\", which is an added token too",
         [&](auto& f) {
             model(f)["vocab"]["\u0120a"] = 258;
             added(f)["content"] = "\u0120a";
         }},
        {"added_tokens[0].id is 300, expected 256",
         [&](auto& f) { added(f)["id"] = 300, added(f)["content"] = "ab"; }},
        {"added_tokens[1].content",
         [&](auto& f) {
             f["added_tokens"].push_back(added(f));
             f["added_tokens"][1]["id"] = 259;
         }},
        {"added_tokens[1].id is 258, which another",
         [&](auto& f) {
             f["added_tokens"].push_back(added(f));
             f["added_tokens"][1]["content"] = "<|other|>";
         }},
    };
    for (size_t i = 0; i < cases.size(); ++i) {
        OrderedJson file = small_file();
        cases[i].change(file);
        const std::string refusal = refusal_of(file.dump());
        EXPECT_TRUE(refusal.starts_with("some.json: ")) << "case " << i << ": " << refusal;
        EXPECT_NE(refusal.find(cases[i].named), std::string::npos)
            << "case " << i << ": " << refusal << "\nlacks " << cases[i].named;
        EXPECT_LT(refusal.size(), 400u) << "case " << i;
    }
}

TEST(TokenizerFile, BrokenJsonIsRefusedAtEveryLength) {
    const std::string json = small_file().dump();
    for (size_t bytes = 0; bytes < json.size(); bytes += 1 + bytes / 64) {
        EXPECT_TRUE(refusal_of(json.substr(0, bytes)).starts_with("some.json: ")) << bytes;
    }
    EXPECT_NE(refusal_of(std::string(100'000, '[')).find("nests deeper"), std::string::npos);
    EXPECT_NE(refusal_of(R"({"model": {}, "model": {}})").find("\"model\" appears twice"),
              std::string::npos);
    EXPECT_NE(refusal_of("{\"\xff\": 1}"), "");
    EXPECT_NE(refusal_of(json + "x"), "");
}

TEST(TokenizerFile, FilesThatCannotBeReadAreNamed) {
    const auto refusal = [](const std::string& path) -> std::string {
        try {
            Tokenizer::load(path);
        } catch (const Error& error) {
            return error.what();
        }
        return {};
    };
    const std::string folder = std::filesystem::temp_directory_path().string();
    EXPECT_TRUE(refusal("/no/such/tokenizer.json").starts_with("/no/such/tokenizer.json: "));
    EXPECT_TRUE(refusal(folder).starts_with(folder + ": ")) << refusal(folder);
}

// A pattern from a hostile file may need exponential time; each search has a budget of steps, and
// what it could not cut is one word. Nothing is lost and nothing runs away.
TEST(TokenizerFile, PatternsThatBacktrackForeverGiveUp) {
    for (const char* pattern :
         {"(a+)+b", "(?:a|a)+b", "(a|aa)+$b", "(.*)*x", "((a{0,99}){0,99}){0,99}b", "(?R)a|(?R)b",
          "(?<=a)b|\\Ka", "(?=a)\\K.", "(*NO_JIT)(a+)+b", "(?:(?:a+)+)+[^a]"}) {
        OrderedJson file = small_file();
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern;
        std::optional<Tokenizer> tokenizer;
        try {
            tokenizer.emplace(Tokenizer::parse(file.dump(), "some.json"));
        } catch (const Error&) {
            continue;  // some of them can match nothing, or do not compile
        }
        for (const size_t bytes : {1, 50, 1000, 20'000}) {
            const std::string text(bytes, 'a');
            EXPECT_EQ(decode(*tokenizer, tokenizer->encode(text, Specials::kAsText)), text);
        }
    }
}

}  // namespace
}  // namespace tessera
