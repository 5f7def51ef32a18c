#include "server/page.h"

#include <array>
#include <string>
#include <string_view>

#include <fmt/format.h>
#include <openssl/evp.h>
#include <openssl/sha.h>

#include "base/check.h"
#include "server/page_parts.h"

namespace tessera {
namespace {

using Hash = std::array<unsigned char, SHA256_DIGEST_LENGTH>;

Hash hash_of(std::string_view text) {
    Hash hash;
    SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), hash.data());
    return hash;
}

// A source of a content security policy: what has exactly these bytes.
std::string policy_hash(std::string_view text) {
    const Hash hash = hash_of(text);
    std::array<unsigned char, 4 * (SHA256_DIGEST_LENGTH + 2) / 3 + 1> base64;
    const int length = EVP_EncodeBlock(base64.data(), hash.data(), hash.size());
    return fmt::format("'sha256-{}'", std::string_view(reinterpret_cast<char*>(base64.data()),
                                                       static_cast<size_t>(length)));
}

void put_in(std::string& html, std::string_view mark, std::string_view part) {
    const size_t at = html.find(mark);
    CHECK(at != html.npos);
    html.replace(at, mark.size(), part);
}

struct Page {
    std::string body, tag;
    HttpHeaders headers;
};

Page make_page() {
    Page page;
    page.body = page::kHtml;
    put_in(page.body, "@style@", page::kStyle);
    put_in(page.body, "@script@", page::kScript);
    page.tag = "\"";
    for (const unsigned char byte : hash_of(page.body)) page.tag += fmt::format("{:02x}", byte);
    page.tag += '"';
    page.headers = {
        {"Content-Security-Policy",
         fmt::format("default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src "
                     "data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                     "require-trusted-types-for 'script'; trusted-types 'none'",
                     policy_hash(page::kScript), policy_hash(page::kStyle))},
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"},
        {"Cache-Control", "no-cache"},  // ask, and mostly be told that nothing changed
        {"ETag", page.tag}};
    return page;
}

// Whether an If-None-Match names `tag`, weakly or not.
bool names(std::string_view list, std::string_view tag) {
    return list == "*" || list.find(tag) != list.npos;
}

}  // namespace

HttpReply page_reply(const HttpRequest& request) {
    static const Page page = make_page();
    HttpReply reply;
    reply.headers = page.headers;
    reply.content_type = "text/html; charset=utf-8";
    if (names(request.header("if-none-match"), page.tag)) {
        reply.status = 304;
        reply.content_type.clear();
    } else {
        reply.body = page.body;
    }
    return reply;
}

}  // namespace tessera
