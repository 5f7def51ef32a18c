#include "server/request_reader.h"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <fmt/format.h>

namespace tessera {

namespace http = boost::beast::http;

struct RequestReader::Beast {
    http::request_parser<http::string_body> parser;
};

RequestReader::RequestReader(const HttpLimits& limits)
    : limits_(limits), beast_(std::make_unique<Beast>()) {
    beast_->parser.header_limit(static_cast<uint32_t>(limits.header_bytes_max));
    beast_->parser.body_limit(limits.body_bytes_max);
}

RequestReader::~RequestReader() = default;

void RequestReader::refuse(uint32_t status, std::string message) {
    at_ = At::kProblem;
    status_ = status;
    message_ = std::move(message);
}

size_t RequestReader::read(std::string_view bytes) {
    auto& parser = beast_->parser;
    size_t taken = 0;
    while (at_ == At::kHead || at_ == At::kBody) {
        if (at_ == At::kBody) parser.eager(begun_body_ = true);
        boost::system::error_code error;
        const size_t now = parser.put(
            boost::asio::const_buffer(bytes.data() + taken, bytes.size() - taken), error);
        taken += now;
        if (at_ == At::kHead) head_bytes_ += now;
        if (error == http::error::need_more) return taken;
        if (error == http::error::header_limit) {
            refuse(431, fmt::format("the headers exceed {} bytes", limits_.header_bytes_max));
        } else if (error == http::error::body_limit) {
            refuse(413, fmt::format("the body exceeds {} bytes", limits_.body_bytes_max));
        } else if (error == http::error::bad_version) {
            refuse(505, "only HTTP/1.1 and HTTP/1.0 are understood");
        } else if (error) {
            refuse(400, fmt::format("this is not HTTP/1.1: {}", error.message()));
        } else if (parser.is_done()) {
            if (at_ == At::kHead) check_head();
            if (at_ != At::kProblem) at_ = At::kEnd;
        } else if (at_ == At::kHead && parser.is_header_done()) {
            at_ = At::kBody;
            check_head();
            return taken;  // whoever asks may refuse it before its body
        } else if (now == 0) {
            return taken;
        }
    }
    return taken;
}

// Beast lets a head that comes all at once be a little longer than one that comes in pieces.
// Two lengths, or a length and chunks, are how one request is smuggled inside another.
void RequestReader::check_head() {
    const auto& message = beast_->parser.get();
    if (head_bytes_ > limits_.header_bytes_max)
        return refuse(431, fmt::format("the headers exceed {} bytes", limits_.header_bytes_max));
    const bool lengths = message.count(http::field::content_length) > 0;
    const bool encodings = message.count(http::field::transfer_encoding) > 0;
    if (encodings && (lengths || !beast_->parser.chunked()))
        return refuse(400, "the length of the body is given in two ways");
    const auto length = beast_->parser.content_length();
    if (length && *length > limits_.body_bytes_max)
        refuse(413, fmt::format("the body exceeds {} bytes", limits_.body_bytes_max));
}

HttpRequest RequestReader::head() const {
    HttpRequest request;
    const auto& message = beast_->parser.get();
    request.method = std::string(message.method_string());
    const std::string_view target(message.target().data(), message.target().size());
    const size_t question = target.find('?');
    request.path = target.substr(0, question);
    if (question != target.npos) request.query = target.substr(question + 1);
    for (const auto& field : message) {
        std::string name(field.name_string());
        for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
        request.headers.emplace_back(std::move(name), std::string(field.value()));
    }
    return request;
}

bool RequestReader::keep_alive() const {
    return beast_->parser.keep_alive();
}

bool RequestReader::chunks() const {
    return beast_->parser.get().version() >= 11;
}

uint64_t RequestReader::body_bytes_max() const {
    if (at_ == At::kEnd && !begun_body_) return 0;
    const auto length = beast_->parser.content_length();
    return length ? *length : limits_.body_bytes_max;
}

std::string RequestReader::take_body() {
    return std::move(beast_->parser.get().body());
}

}  // namespace tessera
