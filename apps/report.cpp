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

void write_json(const nlohmann::json& value, const std::filesystem::path& file) {
    write_file(file, value.dump(1) + "\n");
}

}  // namespace tessera
