#include "server/notify.h"

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <utility>

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace tessera {
namespace {

std::string variable(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
}

}  // namespace

Notifier::Notifier(std::string socket, uint64_t watchdog_us)
    : socket_(std::move(socket)), watchdog_us_(watchdog_us) {}

Notifier Notifier::from_environment() {
    // WATCHDOG_PID: the variables may have been meant for the process that started this one.
    const std::string pid = variable("WATCHDOG_PID");
    const bool ours = pid.empty() || pid == std::to_string(getpid());
    const std::string allowed = variable("WATCHDOG_USEC");
    return Notifier(variable("NOTIFY_SOCKET"),
                    ours ? std::strtoull(allowed.c_str(), nullptr, 10) : 0);
}

bool Notifier::status(std::string_view words) const {
    // A line feed would begin another assignment.
    return send("STATUS=" + std::string(words.substr(0, words.find('\n'))));
}

bool Notifier::send(std::string_view state) const {
    sockaddr_un address{};
    if (socket_.size() < 2 || socket_.size() >= sizeof(address.sun_path)) return false;
    if (socket_[0] != '/' && socket_[0] != '@') return false;
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, socket_.data(), socket_.size());
    if (socket_[0] == '@') address.sun_path[0] = '\0';  // the abstract space
    const auto length =
        static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket_.size() +
                               (socket_[0] == '/' ? 1 : 0));  // a path ends with a zero byte
    const int descriptor = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) return false;
    // A manager whose queue is full is not waited for: this may be the thread that serves.
    const ssize_t sent = sendto(descriptor, state.data(), state.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                                reinterpret_cast<const sockaddr*>(&address), length);
    close(descriptor);
    return sent == static_cast<ssize_t>(state.size());
}

}  // namespace tessera
