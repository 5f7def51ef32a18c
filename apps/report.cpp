#include "report.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include <fmt/format.h>
#include <sys/utsname.h>

#include "base/error.h"
#include "base/threads.h"

#include "commit.h"

namespace tessera {
namespace {

std::string cpu_name() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);) {
        if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
    }
    return "unknown";
}

void write_file(const std::filesystem::path& path, const std::string& text) {
    std::ofstream file(path, std::ios::binary);
    file << text;
    if (!file.flush()) fail("{}: cannot be written", path.string());
}

// 1, 2 or 5 times a power of ten: at most eight steps to `span`.
double nice_step(double span) {
    const double raw = span / 8, power = std::pow(10, std::floor(std::log10(raw)));
    for (const double factor : {1.0, 2.0, 5.0})
        if (factor * power >= raw) return factor * power;
    return 10 * power;
}

}  // namespace

Spread spread_of(std::vector<double> values) {
    if (values.empty()) return {};
    std::ranges::sort(values);
    const size_t n = values.size();
    return {(values[(n - 1) / 2] + values[n / 2]) / 2, values.front(), values.back()};
}

Spread median_interval(const std::vector<double>& values) {
    constexpr uint32_t kDraws = 2000;
    if (values.empty()) return {};
    uint64_t state = 1;
    std::vector<double> medians, drawn(values.size());
    for (uint32_t draw = 0; draw < kDraws; ++draw) {
        for (double& value : drawn) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            value = values[(state >> 33) % values.size()];
        }
        medians.push_back(spread_of(drawn).median);
    }
    std::ranges::sort(medians);
    return {spread_of(values).median, medians[kDraws * 25 / 1000], medians[kDraws * 975 / 1000]};
}

nlohmann::json spread_json(const Spread& s) {
    return {{"median", s.median}, {"low", s.low}, {"high", s.high}};
}

nlohmann::json origin() {
    utsname system{};
    uname(&system);
    return {{"cpu", cpu_name()},          {"threads", available_threads()},
            {"kernel", system.release},   {"compiler", TESSERA_COMPILER},
            {"version", TESSERA_VERSION}, {"commit", TESSERA_COMMIT}};
}

void print_table(const std::vector<std::vector<std::string>>& rows) {
    // Columns, not bytes: a tau is one of the former and two of the latter.
    const auto columns = [](const std::string& text) {
        return static_cast<size_t>(
            std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
    };
    std::vector<size_t> widths;
    for (const auto& row : rows) {
        widths.resize(std::max(widths.size(), row.size()));
        for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], columns(row[i]));
    }
    for (const auto& row : rows) {
        for (size_t i = 0; i < row.size(); ++i) {
            const std::string space(widths[i] - columns(row[i]), ' ');
            fmt::print("{}{}{}", i > 0 ? "  " : "", i > 0 ? space : row[i], i > 0 ? row[i] : space);
        }
        fmt::print("\n");
    }
}

void write_svg(const Chart& chart, const std::filesystem::path& file) {
    constexpr double kWidth = 720, kHeight = 420, kLeft = 70, kRight = 170, kTop = 44, kBottom = 54;
    static constexpr const char* kColors[] = {"#1b6ca8", "#c8553d", "#3d8b5f", "#8a5a9e",
                                              "#b8860b"};
    double x_low = 1e300, x_high = -1e300, y_high = 0;
    for (const Series& series : chart.series) {
        for (const auto& [x, y] : series.points) {
            x_low = std::min(x_low, x);
            x_high = std::max(x_high, x);
            y_high = std::max(y_high, y);
        }
    }
    if (x_low > x_high) return;
    const auto scaled = [&](double x) { return chart.logarithmic_x ? std::log2(x + 1) : x; };
    const double width = std::max(scaled(x_high) - scaled(x_low), 1e-9);
    const auto at_x = [&](double x) {
        return kLeft + (scaled(x) - scaled(x_low)) / width * (kWidth - kLeft - kRight);
    };
    const double step = nice_step(std::max(y_high, 1e-9));
    const double top = std::ceil(y_high / step) * step;
    const auto at_y = [&](double y) {
        return kHeight - kBottom - y / top * (kHeight - kTop - kBottom);
    };
    std::string svg = fmt::format(
        R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" font-family="sans-serif" font-size="12">)"
        R"(<rect width="100%" height="100%" fill="white"/><text x="{}" y="24" font-size="15">{}</text>)",
        kWidth, kHeight, kLeft, chart.title);
    for (double y = 0; y <= top + step / 2; y += step) {
        svg += fmt::format(R"(<line x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}" stroke="#ddd"/>)"
                           R"(<text x="{3}" y="{4:.1f}" text-anchor="end">{5:g}</text>)",
                           kLeft, kWidth - kRight, at_y(y), kLeft - 8, at_y(y) + 4, y);
    }
    std::vector<double> marks;
    for (const Series& series : chart.series)
        for (const auto& point : series.points) marks.push_back(point.first);
    std::ranges::sort(marks);
    marks.erase(std::unique(marks.begin(), marks.end()), marks.end());
    for (const double x : marks)
        svg += fmt::format(R"(<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>)", at_x(x),
                           kHeight - kBottom + 18, x);
    svg += fmt::format(
        R"(<text x="{:.0f}" y="{}" text-anchor="middle">{}</text>)"
        R"-(<text transform="translate(18 {:.0f}) rotate(-90)" text-anchor="middle">{}</text>)-",
        (kLeft + kWidth - kRight) / 2, kHeight - 12, chart.x_name, (kTop + kHeight - kBottom) / 2,
        chart.y_name);
    for (size_t i = 0; i < chart.series.size(); ++i) {
        const char* const color = kColors[i % std::size(kColors)];
        std::string line, dots;
        for (const auto& [x, y] : chart.series[i].points) {
            line += fmt::format("{:.1f},{:.1f} ", at_x(x), at_y(y));
            dots += fmt::format(R"(<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>)", at_x(x),
                                at_y(y), color);
        }
        svg += fmt::format(R"(<polyline points="{}" fill="none" stroke="{}" stroke-width="2"/>{})"
                           R"(<text x="{}" y="{:.0f}" fill="{}">{}</text>)",
                           line, color, dots, kWidth - kRight + 14,
                           kTop + 18 * static_cast<double>(i), color, chart.series[i].name);
    }
    write_file(file, svg + "</svg>\n");
}

void write_svg(const Bars& bars, const std::filesystem::path& file) {
    constexpr double kBar = 16, kGap = 18, kLeft = 70, kRight = 110, kTop = 44, kBottom = 54;
    constexpr double kHeight = 420, kBase = kHeight - kBottom;
    static constexpr const char* kColors[] = {"#8a8f98", "#1b6ca8", "#c8553d", "#3d8b5f",
                                              "#8a5a9e", "#b8860b", "#2a9d8f", "#a05a2c"};
    if (bars.groups.empty() || bars.series.empty()) return;
    const double group = kBar * static_cast<double>(bars.series.size()) + kGap;
    const double right = kLeft + group * static_cast<double>(bars.groups.size());
    double highest = 1e-9;
    for (const auto& values : bars.values)
        for (const Spread& s : values) highest = std::max(highest, s.high);
    const double step = nice_step(highest), top = std::ceil(highest / step) * step;
    const auto at_y = [&](double y) { return kBase - y / top * (kBase - kTop); };
    // Paper and ink follow the reader's theme; the colours of bars are legible on both.
    std::string svg = fmt::format(
        R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:.0f} {1:.0f}" font-family="sans-serif" font-size="12">)"
        R"(<style>.paper{{fill:#fff}}text{{fill:#222}}.line{{stroke:#ccc}}.ends{{stroke:#222}})"
        R"(@media (prefers-color-scheme:dark){{.paper{{fill:#161b22}}text{{fill:#ddd}}.line{{stroke:#444}}.ends{{stroke:#ddd}}}}</style>)"
        R"(<rect class="paper" width="100%" height="100%"/><text x="{2:.0f}" y="24" font-size="15">{3}</text>)"
        R"-(<text transform="translate(18 {4:.0f}) rotate(-90)" text-anchor="middle">{5}</text>)-",
        right + kRight, kHeight, kLeft, bars.title, (kTop + kBase) / 2, bars.y_name);
    for (double y = 0; y <= top + step / 2; y += step)
        svg += fmt::format(R"(<line class="line" x1="{0}" x2="{1:.0f}" y1="{2:.1f}" y2="{2:.1f}"/>)"
                           R"(<text x="{3}" y="{4:.1f}" text-anchor="end">{5:g}</text>)",
                           kLeft, right, at_y(y), kLeft - 8, at_y(y) + 4, y);
    for (size_t g = 0; g < bars.groups.size(); ++g) {
        const double begin = kLeft + group * static_cast<double>(g) + kGap / 2;
        for (size_t i = 0; i < bars.series.size(); ++i) {
            const Spread& s = bars.values[g][i];
            const double x = begin + kBar * static_cast<double>(i);
            svg += fmt::format(
                R"(<rect x="{0:.1f}" y="{1:.1f}" width="{2:.1f}" height="{3:.1f}" fill="{4}"/>)"
                R"(<line class="ends" x1="{5:.1f}" x2="{5:.1f}" y1="{6:.1f}" y2="{7:.1f}"/>)",
                x, at_y(s.median), kBar - 2, kBase - at_y(s.median),
                kColors[i % std::size(kColors)], x + kBar / 2 - 1, at_y(s.low), at_y(s.high));
        }
        // A word of the group's name a line.
        const double middle = begin + (group - kGap) / 2;
        const std::string& name = bars.groups[g];
        const size_t cut = std::min(name.find(' '), name.size());
        svg += fmt::format(R"(<text x="{0:.1f}" y="{1:.0f}" text-anchor="middle">{2}</text>)"
                           R"(<text x="{0:.1f}" y="{3:.0f}" text-anchor="middle">{4}</text>)",
                           middle, kBase + 18, name.substr(0, cut), kBase + 34,
                           cut < name.size() ? name.substr(cut + 1) : "");
    }
    for (size_t i = 0; i < bars.series.size(); ++i) {
        const double y = kTop + 18 * static_cast<double>(i);
        svg += fmt::format(R"(<rect x="{0:.0f}" y="{1:.0f}" width="10" height="10" fill="{2}"/>)"
                           R"(<text x="{3:.0f}" y="{4:.0f}">{5}</text>)",
                           right + 14, y, kColors[i % std::size(kColors)], right + 30, y + 10,
                           bars.series[i]);
    }
    write_file(file, svg + "</svg>\n");
}

void write_json(const nlohmann::json& value, const std::filesystem::path& file) {
    write_file(file, value.dump(1) + "\n");
}

}  // namespace tessera
