#include "server/exchange.h"

#include <array>
#include <charconv>
#include <ctime>

#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "base/check.h"

namespace tessera {
namespace {

std::string_view reason(uint32_t status) {
    switch (status) {
        case 200:
            return "OK";
        case 304:
            return "Not Modified";
        case 400:
            return "Bad Request";
        case 401:
            return "Unauthorized";
        case 403:
            return "Forbidden";
        case 404:
            return "Not Found";
        case 405:
            return "Method Not Allowed";
        case 408:
            return "Request Timeout";
        case 413:
            return "Content Too Large";
        case 415:
            return "Unsupported Media Type";
        case 429:
            return "Too Many Requests";
        case 431:
            return "Request Header Fields Too Large";
        case 500:
            return "Internal Server Error";
        case 501:
            return "Not Implemented";
        case 503:
            return "Service Unavailable";
        case 505:
            return "HTTP Version Not Supported";
        default:
            return "Unknown";
    }
}

std::string http_date() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    std::array<char, 32> text;
    return {text.data(),
            std::strftime(text.data(), text.size(), "%a, %d %b %Y %H:%M:%S GMT", &parts)};
}

}  // namespace

std::string_view HttpRequest::header(std::string_view name) const {
    for (const auto& [key, value] : headers)
        if (key == name) return value;
    return {};
}

std::string http_head(const HttpReply& reply, std::string_view request_id,
                      std::optional<uint64_t> length, bool chunked, bool keep_alive) {
    std::string head = fmt::format("HTTP/1.1 {} {}\r\nDate: {}\r\nx-request-id: {}\r\n",
                                   reply.status, reason(reply.status), http_date(), request_id);
    if (!reply.content_type.empty())
        head += fmt::format("Content-Type: {}\r\n", reply.content_type);
    for (const auto& [name, value] : reply.headers) head += fmt::format("{}: {}\r\n", name, value);
    const bool has_body = reply.status != 304;
    if (length && has_body) head += fmt::format("Content-Length: {}\r\n", *length);
    if (chunked) head += "Transfer-Encoding: chunked\r\n";
    head += keep_alive ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
    return head;
}

OpenExchange::OpenExchange(HttpRequest request, boost::asio::any_io_executor executor,
                           const HttpLimits& limits, bool keep_alive, bool chunks)
    : request_(std::move(request)),
      unread_bytes_max_(limits.unread_bytes_max),
      chunks_(chunks),
      keep_alive_(keep_alive),
      wake_(std::move(executor)) {}

void OpenExchange::reply(HttpReply whole) {
    {
        const std::scoped_lock lock(mutex_);
        CHECK(!begun_);
        begun_ = over_ = true;
        status_ = whole.status;
        pending_ = http_head(whole, request_.id, whole.body.size(), false, keep_alive_);
        if (request_.method != "HEAD") pending_ += whole.body;
        call_ = nullptr;
    }
    notify();
}

void OpenExchange::begin(HttpReply head, std::string ping) {
    {
        const std::scoped_lock lock(mutex_);
        CHECK(!begun_);
        begun_ = streaming_ = true;
        if (!chunks_) keep_alive_ = false;
        status_ = head.status;
        ping_ = std::move(ping);
        pending_ = http_head(head, request_.id, std::nullopt, chunks_, keep_alive_);
        if (!head.body.empty()) append(head.body);
    }
    notify();
}

// A chunk is its length in hexadecimal, the bytes, and line ends around both.
void OpenExchange::append(std::string_view piece) {
    if (!chunks_) {
        pending_ += piece;
        return;
    }
    std::array<char, 16> digits;
    char* const end =
        std::to_chars(digits.data(), digits.data() + digits.size(), piece.size(), 16).ptr;
    pending_.append(digits.data(), static_cast<size_t>(end - digits.data()))
        .append("\r\n")
        .append(piece)
        .append("\r\n");
}

bool OpenExchange::write(std::string_view piece) {
    bool kept = true;
    {
        const std::scoped_lock lock(mutex_);
        CHECK(streaming_ && !over_);
        if (gone_ || cut_) return false;
        if (piece.empty()) return true;
        if (pending_.size() + piece.size() > unread_bytes_max_) {
            cut_ = true;
            kept = false;
            pending_.clear();
        } else {
            append(piece);
        }
    }
    notify();
    return kept;
}

void OpenExchange::end() {
    {
        const std::scoped_lock lock(mutex_);
        CHECK(streaming_ && !over_);
        over_ = true;
        if (chunks_ && !cut_) pending_ += "0\r\n\r\n";
        call_ = nullptr;
    }
    notify();
}

void OpenExchange::on_gone(std::function<void()> call) {
    {
        const std::scoped_lock lock(mutex_);
        if (!gone_) {
            call_ = std::move(call);
            return;
        }
    }
    call();
}

OpenExchange::Batch OpenExchange::take() {
    notified_ = false;
    const std::scoped_lock lock(mutex_);
    return {std::exchange(pending_, {}), over_, cut_};
}

void OpenExchange::ping() {
    const std::scoped_lock lock(mutex_);
    if (streaming_ && !over_ && pending_.empty() && !ping_.empty()) append(ping_);
}

void OpenExchange::leave() {
    std::function<void()> call;
    {
        const std::scoped_lock lock(mutex_);
        if (gone_.exchange(true)) return;
        call = std::exchange(call_, nullptr);
        pending_.clear();
    }
    if (call) call();
}

// One wake on its way is enough: whoever takes next takes all.
void OpenExchange::notify() {
    if (notified_.exchange(true)) return;
    boost::asio::post(wake_.get_executor(), [self = shared_from_this()] { self->wake_.cancel(); });
}

}  // namespace tessera
