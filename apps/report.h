// What a benchmark found, as a table on stdout, as JSON and as a chart.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace tessera {

// The middle and the ends of repeated measurements.
struct Spread {
    double median = 0, low = 0, high = 0;
};
Spread spread_of(std::vector<double> values);
nlohmann::json spread_json(const Spread& spread);

// The median, and the range in which 95 of 100 medians of as many draws from `values` lie. Seeded:
// the same values give the same range.
Spread median_interval(const std::vector<double>& values);

// Machine, compiler, build and commit: what a figure is worth nothing without.
nlohmann::json origin();

// Rows of words in aligned columns, numbers to the right.
void print_table(const std::vector<std::vector<std::string>>& rows);

struct Series {
    std::string name;
    std::vector<std::pair<double, double>> points;  // x, y
};
// Lines over a logarithmic or linear x axis. Throws Error if the file cannot be written.
struct Chart {
    std::string title, x_name, y_name;
    bool logarithmic_x = false;
    std::vector<Series> series;
};
void write_svg(const Chart& chart, const std::filesystem::path& file);

// Bars in groups, a bar a series, each with its low and high ends.
struct Bars {
    std::string title, y_name;
    std::vector<std::string> series, groups;
    std::vector<std::vector<Spread>> values;  // group, series
};
void write_svg(const Bars& bars, const std::filesystem::path& file);
void write_json(const nlohmann::json& value, const std::filesystem::path& file);

}  // namespace tessera
