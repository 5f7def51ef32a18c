// Asks a running server whether it is ready: what a container's health check runs, where the image
// has no other client.
#include <cerrno>
#include <cstring>
#include <memory>

#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"

#include "doctor.h"

namespace tessera {
namespace {

constexpr int kSeconds = 5;  // to connect, and for each answer of the socket

struct Place {
    std::string host, port;
};

// "http://host:port", "http://[::1]:8080/"; without a port 80.
Place parse_url(const std::string& url) {
    constexpr std::string_view kScheme = "http://";
    const auto refuse = [&] { fail("--server {}: expected http://HOST:PORT", url); };
    if (!url.starts_with(kScheme)) refuse();
    std::string rest = url.substr(kScheme.size());
    rest = rest.substr(0, rest.find('/'));
    Place place{rest, "80"};
    const size_t bracket = rest.find(']');
    const size_t colon = rest.find(':', bracket == rest.npos ? 0 : bracket);
    if (colon != rest.npos) place = {rest.substr(0, colon), rest.substr(colon + 1)};
    if (bracket != rest.npos && place.host.size() > 2)
        place.host = place.host.substr(1, bracket - 1);
    if (place.host.empty() || place.port.empty()) refuse();
    return place;
}

class Socket {
  public:
    // Not open if nobody listens; why() then tells.
    explicit Socket(const Place& place) {
        addrinfo wanted{}, *found = nullptr;
        wanted.ai_socktype = SOCK_STREAM;
        if (const int code = getaddrinfo(place.host.c_str(), place.port.c_str(), &wanted, &found)) {
            why_ = gai_strerror(code);
            return;
        }
        const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, freeaddrinfo);
        for (const addrinfo* at = found; at != nullptr && !open(); at = at->ai_next) try_one(*at);
    }
    ~Socket() {
        if (open()) close(descriptor_);
    }
    Socket(const Socket&) = delete;
    Socket& operator=(const Socket&) = delete;

    bool open() const { return descriptor_ >= 0; }
    const std::string& why() const { return why_; }

    // The whole reply, as far as it comes in time.
    std::string ask(const std::string& request) {
        std::string reply;
        char piece[4096];
        if (send(descriptor_, request.data(), request.size(), MSG_NOSIGNAL) < 0) return reply;
        for (ssize_t got = 0; (got = recv(descriptor_, piece, sizeof piece, 0)) > 0;)
            reply.append(piece, static_cast<size_t>(got));
        return reply;
    }

  private:
    void try_one(const addrinfo& at) {
        descriptor_ = socket(at.ai_family, at.ai_socktype | SOCK_CLOEXEC, at.ai_protocol);
        if (!open()) return;
        const timeval time{kSeconds, 0};
        setsockopt(descriptor_, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);  // connect too
        setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
        if (connect(descriptor_, at.ai_addr, at.ai_addrlen) == 0) return;
        why_ = std::strerror(errno);
        close(descriptor_);
        descriptor_ = -1;
    }

    int descriptor_ = -1;
    std::string why_ = "no address";
};

}  // namespace

void examine_server(const std::string& url, Examination& all) {
    const Place place = parse_url(url);
    Socket socket(place);
    Finding finding{"server", "", "", Verdict::kBroken, ""};
    if (!socket.open()) {
        finding.found = fmt::format("{}: {}", url, socket.why());
        finding.fix = "start it: tessera serve";
        all.add(std::move(finding));
        return;
    }
    const std::string reply = socket.ask(
        fmt::format("GET /health HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", place.host));
    constexpr size_t kVersionBytes = 9;  // "HTTP/1.1 "
    const bool is_http = reply.starts_with("HTTP/1.") && reply.size() > kVersionBytes + 3;
    const std::string status = is_http ? reply.substr(kVersionBytes, 3) : "";
    const size_t body = reply.find("\r\n\r\n");
    const std::string said = body == reply.npos ? "" : reply.substr(body + 4);
    all.facts["server"] = {{"url", url}, {"status", status}, {"health", said}};
    finding.found = fmt::format("{}: {} {}", url, status.empty() ? "no answer" : status, said);
    if (status == "200") {
        finding.verdict = Verdict::kFine;
        finding.means = "it is ready";
    } else {
        finding.fix = status == "503" ? "it loads or drains: ask again, or see its log"
                                      : "something else answers there, or it hangs: see its log";
    }
    all.add(std::move(finding));
}

}  // namespace tessera
