// A text of our own to calibrate with when the user gives none.
#pragma once

#include <string_view>

namespace shoal {

// The pages of docs/ as they were when this was built: technical English, tables and commands.
std::string_view calibration_text();

}  // namespace shoal
