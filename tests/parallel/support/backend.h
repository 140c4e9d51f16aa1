// The device and the verbs that the tests of this folder run on.
#pragma once

#include <memory>

#include "kernels/base/device.h"
#include "kernels/ops.h"

namespace shoal::test {

std::unique_ptr<Device> make_test_device();
std::unique_ptr<Ops> make_test_ops();

}  // namespace shoal::test
