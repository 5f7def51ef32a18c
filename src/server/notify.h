// What the service manager is told (systemd's sd_notify protocol): datagrams to the unix socket
// that NOTIFY_SOCKET names. Ours, because the protocol is one sendto and the library is large.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tessera {

class Notifier {
  public:
    // Nothing is sent if `socket` is empty. A path, or a name of the abstract space behind "@".
    // `watchdog_us`: within which the manager wants a sign of life; 0: it does not ask.
    explicit Notifier(std::string socket, uint64_t watchdog_us = 0);

    // From NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
    static Notifier from_environment();

    // Each says whether the datagram was handed over; a manager that does not listen is no reason
    // to fail.
    bool ready() const { return send("READY=1"); }
    bool stopping() const { return send("STOPPING=1"); }
    bool alive() const { return send("WATCHDOG=1"); }
    bool status(std::string_view words) const;  // one line, shown by systemctl status

    // How often alive() should be called: half of what the manager allows; 0: it does not ask.
    double alive_every_s() const { return static_cast<double>(watchdog_us_) / 2e6; }

  private:
    bool send(std::string_view state) const;

    std::string socket_;
    uint64_t watchdog_us_;
};

}  // namespace tessera
