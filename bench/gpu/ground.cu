// ground OUT.json [GROUP...]: the ceilings of one GPU, of which all later figures are shares
// (docs/GPU.md). Every group of measurements runs in a process of its own, because a kernel that
// traps takes its context with it: the others still report, and the exit code says that one did
// not.
#include <array>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broadcast.cuh"
#include "clocks.cuh"
#include "launches.cuh"
#include "report.h"
#include "signals.cuh"
#include "stream.cuh"

namespace tessera::ground {
namespace {

struct Group {
    const char* name;
    void (*measure)(const Card&, const Reporter&);
};

constexpr std::array<Group, 6> kGroups = {{{"clocks", measure_clocks},
                                           {"stream", measure_stream},
                                           {"signals", measure_signals},
                                           {"phases", measure_phases},
                                           {"broadcast", measure_broadcast},
                                           {"launches", measure_launches}}};

// A group takes a few seconds; one that takes this long hangs where no spin limit is.
constexpr int kGroupSecondsMax = 25;

[[noreturn]] void measure_and_exit(const Group& group, int pipe) {
    std::FILE* out = fdopen(pipe, "w");
    const Reporter reporter(out);
    try {
        const Card card;
        group.measure(card, reporter);
    } catch (const std::exception& error) {
        reporter.say(Failure{group.name, error.what()});
    }
    std::fflush(out);
    _exit(0);  // no destructors: a lost context only has errors to say
}

// What the child says until it closes its end, or until its time is over.
std::string read_all(int pipe, bool& in_time) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(kGroupSecondsMax);
    std::string text;
    while (true) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            deadline - std::chrono::steady_clock::now());
        pollfd ready = {pipe, POLLIN, 0};
        in_time = left.count() > 0 && poll(&ready, 1, static_cast<int>(left.count())) > 0;
        if (!in_time) return text;
        char bytes[4096];
        const ssize_t count = read(pipe, bytes, sizeof bytes);
        if (count <= 0) return text;
        text.append(bytes, static_cast<size_t>(count));
    }
}

Report run(const Group& group) {
    Report report = {group.name, {}, {}, {}};
    int ends[2];
    if (pipe(ends) != 0) throw std::runtime_error("no pipe");
    const pid_t child = fork();
    if (child < 0) throw std::runtime_error("no process");
    if (child == 0) {
        close(ends[0]);
        measure_and_exit(group, ends[1]);
    }
    close(ends[1]);
    bool in_time = true;
    std::istringstream lines(read_all(ends[0], in_time));
    close(ends[0]);
    if (!in_time) kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, in_time ? 0 : WNOHANG);  // one that cannot die is not waited for
    for (std::string line; std::getline(lines, line);) add_line(report, line);
    if (!in_time) {
        report.failures.push_back(
            {group.name, "still running after " + std::to_string(kGroupSecondsMax) + " s, killed"});
    } else if (status != 0) {
        report.failures.push_back(
            {group.name, "ended by signal or error, status " + std::to_string(status)});
    }
    return report;
}

void write_json(const std::string& path, const std::vector<Report>& reports) {
    std::ofstream out(path);
    out << "{\"groups\": [\n";
    for (size_t i = 0; i < reports.size(); ++i) {
        out << json_of(reports[i]) << (i + 1 < reports.size() ? ",\n" : "\n");
    }
    out << "]}\n";
    if (!out.flush()) throw std::runtime_error("cannot write " + path);
}

bool chosen(const Group& group, int count, char** names) {
    const auto is_group = [&](const char* name) { return std::strcmp(name, group.name) == 0; };
    return count == 0 || std::any_of(names, names + count, is_group);
}

int run_all(int argc, char** argv) {
    std::vector<Report> reports;
    size_t figures = 0;
    size_t failures = 0;
    for (const Group& group : kGroups) {
        if (!chosen(group, argc - 2, argv + 2)) continue;
        const auto began = std::chrono::steady_clock::now();
        Report report = run(group);
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - began;
        report.facts.push_back({"seconds", number(time.count())});
        print_table(report);
        figures += report.figures.size();
        failures += report.failures.size();
        reports.push_back(report);
        write_json(argv[1], reports);  // after each group: whatever ends this process, they stay
    }
    std::printf("\nground: %zu figures, %zu failures\n", figures, failures);
    return figures > 0 && failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace tessera::ground

int main(int argc, char** argv) {
    if (argc < 2) {
        std::cerr << "usage: ground OUT.json [GROUP...]\n";
        return 2;
    }
    try {
        return tessera::ground::run_all(argc, argv);
    } catch (const std::exception& error) {
        std::cerr << "ground: " << error.what() << "\n";
        return 2;
    }
}
