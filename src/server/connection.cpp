#include "server/connection.h"

#include <array>
#include <random>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/buffers_prefix.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <fmt/format.h>

namespace tessera {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using Clock = std::chrono::steady_clock;
using ErrorCode = boost::system::error_code;

constexpr auto kResult = asio::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 4096;
constexpr size_t kAheadBytesMax = 65'536;  // that a client may send before its reply has come
constexpr double kLingerSeconds = 2;

// 128 random bits: ids that nobody guesses and that never repeat.
std::string new_id() {
    thread_local std::mt19937_64 random = [] {
        std::random_device device;
        std::seed_seq seed{device(), device(), device(), device(), device(), device()};
        return std::mt19937_64(seed);
    }();
    return fmt::format("{:016x}{:016x}", random(), random());
}

using Parser = http::request_parser<http::string_body>;

HttpRequest request_of(const Parser& parser, const std::string& peer) {
    HttpRequest request;
    const auto& message = parser.get();
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
    request.id = new_id();
    request.peer = peer;
    return request;
}

}  // namespace

Connection::Connection(Socket socket, ConnectionHost& host)
    : socket_(std::move(socket)),
      host_(host),
      buffer_(host.limits().header_bytes_max + kAheadBytesMax),
      deadline_(socket_.get_executor()) {
    ErrorCode ignored;
    const auto endpoint = socket_.remote_endpoint(ignored);
    peer_ = fmt::format("{}:{}", endpoint.address().to_string(), endpoint.port());
    socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    // Beside this, the system would keep megabytes for a client that does not read.
    const uint64_t unsent = std::min<uint64_t>(host.limits().unread_bytes_max, 262'144);
    socket_.set_option(asio::socket_base::send_buffer_size(static_cast<int>(unsent)), ignored);
}

void Connection::start(bool turned_away) {
    asio::co_spawn(
        socket_.get_executor(),
        [self = shared_from_this(), turned_away] { return self->run(turned_away); },
        asio::detached);
}

asio::awaitable<void> Connection::run(bool turned_away) {
    if (turned_away) {
        HttpRequest nobody;
        nobody.id = new_id();
        nobody.peer = peer_;
        co_await refuse(nobody, 503, "too many connections are open: try again later");
    } else {
        while (co_await serve_one()) {
        }
    }
    disarm();
    close();
    host_.closed(*this);
}

void Connection::close_idle() {
    if (idle_) close();
}

void Connection::close() {
    ErrorCode ignored;
    socket_.close(ignored);
}

// ------------------------------------------------------------------ deadlines

void Connection::arm(double seconds) {
    expired_ = false;
    deadline_.expires_after(
        std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
    deadline_.async_wait([self = weak_from_this(), mine = ++deadlines_](ErrorCode) {
        const auto connection = self.lock();
        if (!connection || connection->deadlines_ != mine) return;
        connection->expired_ = true;
        ErrorCode ignored;
        connection->socket_.cancel(ignored);
    });
}

void Connection::disarm() {
    ++deadlines_;
    deadline_.cancel();
}

// ------------------------------------------------------------------ one request

// False once the connection should close.
asio::awaitable<bool> Connection::serve_one() {
    const HttpLimits& limits = host_.limits();
    if (host_.draining()) co_return false;
    if (buffer_.size() == 0) {
        idle_ = true;
        arm(limits.idle_s);
        const auto [error, count] =
            co_await socket_.async_read_some(buffer_.prepare(kReadBytes), kResult);
        idle_ = false;
        disarm();
        if (error) co_return false;
        buffer_.commit(count);
    }

    Parser parser;
    parser.header_limit(static_cast<uint32_t>(limits.header_bytes_max));
    parser.body_limit(limits.body_bytes_max);
    arm(limits.header_s);
    const auto head = co_await http::async_read_header(socket_, buffer_, parser, kResult);
    disarm();
    const auto begun = Clock::now();
    if (const ErrorCode error = std::get<0>(head)) {
        HttpRequest unknown;
        unknown.id = new_id();
        unknown.peer = peer_;
        if (expired_) co_return co_await refuse(unknown, 408, "the headers took too long");
        if (error == http::error::header_limit || error == http::error::buffer_overflow) {
            co_return co_await refuse(
                unknown, 431, fmt::format("the headers exceed {} bytes", limits.header_bytes_max));
        }
        if (error == http::error::body_limit) {
            co_return co_await refuse(
                unknown, 413, fmt::format("the body exceeds {} bytes", limits.body_bytes_max));
        }
        const bool understood =
            error.category() == make_error_code(http::error::bad_method).category();
        if (!understood || error == http::error::end_of_stream ||
            error == http::error::partial_message)
            co_return false;
        co_return co_await refuse(unknown, 400,
                                  fmt::format("this is not HTTP/1.1: {}", error.message()));
    }
    HttpRequest request = request_of(parser, peer_);
    request.received = begun;
    if (!request.header("transfer-encoding").empty() &&
        (!request.header("content-length").empty() || !parser.chunked())) {
        co_return co_await refuse(request, 400, "the length of the body is given in two ways");
    }

    const bool has_body = !parser.is_done();
    const auto length = parser.content_length();
    if (length && *length > limits.body_bytes_max) {
        co_return co_await refuse(request, 413,
                                  fmt::format("the body exceeds {} bytes", limits.body_bytes_max));
    }
    if (auto refused = host_.handler().admit(request)) {
        co_return co_await refuse(request, std::move(*refused), parser.keep_alive() && !has_body);
    }
    const uint64_t body_bytes = !has_body ? 0 : length ? *length : limits.body_bytes_max;
    if (!host_.take_body(body_bytes)) {
        co_return co_await refuse(request, 503, "too many large requests at once: try again later");
    }
    if (has_body) {
        ErrorCode error;
        arm(limits.body_s);
        if (beast::iequals(request.header("expect"), "100-continue")) {
            constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
            error =
                std::get<0>(co_await asio::async_write(socket_, asio::buffer(kContinue), kResult));
        }
        if (!error)
            error = std::get<0>(co_await http::async_read(socket_, buffer_, parser, kResult));
        disarm();
        if (error) {
            host_.give_body(body_bytes);
            if (expired_) co_return co_await refuse(request, 408, "the body took too long");
            if (error == http::error::body_limit) {
                co_return co_await refuse(
                    request, 413, fmt::format("the body exceeds {} bytes", limits.body_bytes_max));
            }
            if (error == http::error::bad_chunk || error == http::error::bad_chunk_extension)
                co_return co_await refuse(request, 400, "the chunks of the body are malformed");
            host_.handler().finished(request, {});
            co_return false;
        }
        request.body = std::move(parser.get().body());
    }
    request.received = Clock::now();
    const bool keep = co_await answer(std::move(request), body_bytes, parser.keep_alive(),
                                      parser.get().version() >= 11);
    co_return keep;
}

asio::awaitable<bool> Connection::answer(HttpRequest request, uint64_t body_bytes, bool keep_alive,
                                         bool chunks) {
    using namespace asio::experimental::awaitable_operators;
    const auto begun = Clock::now();
    const auto exchange =
        std::make_shared<OpenExchange>(std::move(request), socket_.get_executor(), host_.limits(),
                                       keep_alive && !host_.draining(), chunks);
    host_.handle(exchange);
    HttpOutcome outcome;
    co_await (watch() || pump(*exchange, outcome));
    disarm();
    host_.give_body(body_bytes);
    outcome.status = exchange->status();
    outcome.seconds = std::chrono::duration<double>(Clock::now() - begun).count();
    if (!outcome.whole) exchange->leave();
    host_.handler().finished(exchange->request(), outcome);
    exchange->request().guest.reset();
    co_return outcome.whole && exchange->keep_alive() && !host_.draining();
}

// Returns when the client has left. What it sends ahead of its reply is kept for later.
asio::awaitable<void> Connection::watch() {
    while (buffer_.size() < kAheadBytesMax) {
        const auto [error, count] =
            co_await socket_.async_read_some(buffer_.prepare(kReadBytes), kResult);
        if (error) co_return;
        buffer_.commit(count);
    }
    asio::steady_timer never(socket_.get_executor(), Clock::time_point::max());
    co_await never.async_wait(kResult);
}

// ------------------------------------------------------------------ sending

// Returns when the reply is whole, or cannot be.
asio::awaitable<void> Connection::pump(OpenExchange& exchange, HttpOutcome& outcome) {
    const auto ping = std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(host_.limits().ping_s));
    while (true) {
        const OpenExchange::Batch batch = exchange.take();
        if (batch.cut) co_return;
        if (!batch.bytes.empty()) {
            if (!co_await send(batch.bytes, outcome)) co_return;
            if (!batch.over) continue;
        }
        if (batch.over) {
            outcome.whole = true;
            co_return;
        }
        exchange.wake().expires_after(ping);
        const auto [woken] = co_await exchange.wake().async_wait(kResult);
        if (!woken) exchange.ping();
        if (exchange.gone()) co_return;
    }
}

asio::awaitable<bool> Connection::send(std::string_view bytes, HttpOutcome& outcome) {
    while (!bytes.empty()) {
        arm(host_.limits().write_s);
        const auto [error, count] =
            co_await socket_.async_write_some(asio::buffer(bytes.data(), bytes.size()), kResult);
        disarm();
        if (error) co_return false;
        bytes.remove_prefix(count);
        outcome.bytes_sent += count;
    }
    co_return true;
}

asio::awaitable<bool> Connection::refuse(HttpRequest& request, HttpReply reply, bool keep_alive) {
    std::string bytes = http_head(reply, request.id, reply.body.size(), false, keep_alive);
    if (request.method != "HEAD") bytes += reply.body;
    HttpOutcome outcome;
    outcome.status = reply.status;
    outcome.whole = co_await send(bytes, outcome);
    host_.handler().finished(request, outcome);
    request.guest.reset();
    if (!keep_alive) co_await linger();
    co_return keep_alive&& outcome.whole;
}

asio::awaitable<bool> Connection::refuse(HttpRequest& request, uint32_t status,
                                         std::string_view message) {
    HttpReply reply = host_.handler().problem(status, message, request);
    co_return co_await refuse(request, std::move(reply), false);
}

// A socket that closes with unread bytes sends a reset, and the reply may never be seen: take what
// comes for a moment.
asio::awaitable<void> Connection::linger() {
    ErrorCode ignored;
    socket_.shutdown(Socket::shutdown_send, ignored);
    arm(kLingerSeconds);
    std::array<char, 16'384> dropped;
    while (!expired_) {
        const auto result = co_await socket_.async_read_some(asio::buffer(dropped), kResult);
        if (std::get<0>(result)) break;
    }
    disarm();
}

}  // namespace tessera
