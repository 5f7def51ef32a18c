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
#include <boost/beast/core/string.hpp>
#include <fmt/format.h>

#include "base/log.h"

namespace tessera {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using Clock = std::chrono::steady_clock;
using ErrorCode = boost::system::error_code;

constexpr auto kResult = asio::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 16'384;
constexpr size_t kIdleBytes = 1024;
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

}  // namespace

Connection::Connection(Socket socket, ConnectionHost& host)
    : socket_(std::move(socket)),
      host_(host),
      buffer_(host.limits().header_bytes_max + kAheadBytesMax + kReadBytes),
      deadline_(socket_.get_executor()) {
    ErrorCode ignored;
    const auto endpoint = socket_.remote_endpoint(ignored);
    peer_ = fmt::format("{}:{}", endpoint.address().to_string(), endpoint.port());
    socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    socket_.non_blocking(true, ignored);  // for send()
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
    try {
        if (turned_away) {
            HttpRequest nobody;
            nobody.id = new_id();
            nobody.peer = peer_;
            co_await refuse(nobody, 503, "too many connections are open: try again later");
        } else {
            while (co_await serve_one()) {
            }
        }
    } catch (const std::exception& error) {  // no memory for this one
        spdlog::error("a connection ends: {}", error.what());
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
        buffer_.shrink_to_fit();  // there may be thousands that only wait
        const auto [error, count] =
            co_await socket_.async_read_some(buffer_.prepare(kIdleBytes), kResult);
        idle_ = false;
        disarm();
        if (error) co_return false;
        buffer_.commit(count);
    }

    RequestReader reader(limits);
    arm(limits.header_s);
    const bool head_came = co_await read_until(reader, RequestReader::At::kHead);
    disarm();
    const bool head_there = reader.at() != RequestReader::At::kHead;
    HttpRequest request;
    if (head_there && reader.at() != RequestReader::At::kProblem) request = reader.head();
    request.id = new_id();
    request.peer = peer_;
    request.received = Clock::now();
    if (!head_came) {
        if (!expired_) co_return false;
        co_return co_await refuse(request, 408, "the headers took too long");
    }
    if (reader.at() == RequestReader::At::kProblem)
        co_return co_await refuse(request, reader.status(), reader.message());

    const bool has_body = reader.at() == RequestReader::At::kBody;
    if (auto refused = host_.handler().admit(request))
        co_return co_await refuse(request, std::move(*refused), reader.keep_alive() && !has_body);
    const uint64_t body_bytes = reader.body_bytes_max();
    if (!host_.take_body(body_bytes))
        co_return co_await refuse(request, 503, "too many large requests at once: try again later");
    if (has_body) {
        arm(limits.body_s);
        bool body_came = true;
        if (beast::iequals(request.header("expect"), "100-continue")) {
            constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
            const auto sent = co_await asio::async_write(socket_, asio::buffer(kContinue), kResult);
            body_came = !std::get<0>(sent);
        }
        if (body_came) body_came = co_await read_until(reader, RequestReader::At::kBody);
        disarm();
        if (!body_came || reader.at() == RequestReader::At::kProblem) host_.give_body(body_bytes);
        if (!body_came && expired_)
            co_return co_await refuse(request, 408, "the body took too long");
        if (!body_came) {
            host_.handler().finished(request, {});
            co_return false;
        }
        if (reader.at() == RequestReader::At::kProblem)
            co_return co_await refuse(request, reader.status(), reader.message());
        request.body = reader.take_body();
    }
    request.received = Clock::now();
    const bool keep =
        co_await answer(std::move(request), body_bytes, reader.keep_alive(), reader.chunks());
    co_return keep;
}

// Feeds the reader until it is beyond `here`; false if the socket ends, or the deadline passes,
// first.
asio::awaitable<bool> Connection::read_until(RequestReader& reader, RequestReader::At here) {
    bool offered = false;
    while (reader.at() == here) {
        if (buffer_.size() > 0 && !offered) {
            const auto bytes = buffer_.cdata();
            buffer_.consume(reader.read({static_cast<const char*>(bytes.data()), bytes.size()}));
            offered = true;
            continue;
        }
        if (expired_) co_return false;  // it passed just when the last bytes came
        // Something in a body that never ends, the extension of a chunk perhaps.
        if (buffer_.size() + kReadBytes > buffer_.max_size()) co_return false;
        const auto [error, count] =
            co_await socket_.async_read_some(buffer_.prepare(kReadBytes), kResult);
        if (error) co_return false;
        buffer_.commit(count);
        offered = false;
    }
    co_return true;
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
        // Nearly always there is room: then a token costs neither a deadline nor a turn of the
        // loop.
        ErrorCode error;
        const size_t count = socket_.write_some(asio::buffer(bytes.data(), bytes.size()), error);
        bytes.remove_prefix(count);
        outcome.bytes_sent += count;
        if (!error) continue;
        if (error != asio::error::would_block) co_return false;
        arm(host_.limits().write_s);
        const auto [failed] = co_await socket_.async_wait(Socket::wait_write, kResult);
        disarm();
        if (failed) co_return false;
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
