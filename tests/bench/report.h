// The table of a bench: one row per verb and shape, beside what the device can do at most.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/bench/meter.h"

namespace shoal::bench {

struct Row {
  std::string verb, shape, dtype;
  double seconds = 0;
  double bytes = 0, flops = 0;  // that the verb cannot do without
};

class Report {
 public:
  // Rows whose "verb shape dtype" does not contain `only` are not wanted. Prints the limits.
  Report(const Meter& meter, std::string only);

  bool wanted(const std::string& verb, const std::string& shape, const std::string& dtype) const;
  // Prints the row. Throws Bug when a figure is no positive number.
  void add(const Row& row);
  const std::vector<Row>& rows() const { return rows_; }
  nlohmann::json json() const;

 private:
  std::string device_;
  double bandwidth_, math_rate_;
  std::string only_;
  std::vector<Row> rows_;
};

// Throws InvalidInput when the file cannot be written.
void write_json(const std::string& path, const nlohmann::json& json);

}  // namespace shoal::bench
