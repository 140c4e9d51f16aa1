#include "server/plan_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "kernels/base/error.h"
#include "runtime/backend.h"
#include "runtime/checkpoint/model_dir.h"
#include "runtime/memory/known_models.h"
#include "runtime/quantization/dummy_checkpoint.h"
#include "server/plan_report.h"

namespace shoal {
namespace {

struct PlannedModel {
  std::string name;
  ModelConfig config;
  FormOf forms;  // of its own weights; empty: as published
  std::string stored;
};

DType parse_dtype(const std::string& value, const ModelConfig& config) {
  if (value == "float32") return DType::kF32;
  if (value == "bfloat16") return DType::kBF16;
  if (value != "auto") throw_invalid("--dtype {}: use auto, float32 or bfloat16", value);
  return config.torch_dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
}

// A path that exists, a model of the Hugging Face cache, or one that is known by its name: in this order,
// so that a checkpoint that is here is planned by its own headers.
PlannedModel find_model(const PlanCommandOptions& o) {
  const KnownModel* known = find_known_model(o.model);
  std::string dir;
  try {
    dir = resolve_model_dir(o.model, o.revision);
  } catch (const InvalidInput& error) {
    if (known == nullptr) {
      std::string names;
      for (const KnownModel& model : known_models()) {
        names += (names.empty() ? "" : ", ") + std::string(short_name(model));
      }
      throw_invalid("{}; known without files: {}", error.what(), names);
    }
    const ModelConfig config = parse_model_config(known->config, known->name);
    const std::string form = describe(config.quantization);
    return {known->name, config, {}, "as published, " + (form.empty() ? "bfloat16" : form)};
  }
  PlannedModel model{o.model, read_model_config(dir), {}, ""};
  const DType dtype = parse_dtype(o.dtype, model.config);
  // A folder with nothing but a config.json is planned as such a model is published.
  if (o.load_format == "dummy") {
    const std::shared_ptr<const Checkpoint> made_up = open_dummy_checkpoint(dir, "none");
    const std::string form = made_up->quantization();
    model.stored = "made up, as config.json says" + (form.empty() ? "" : ", " + form);
    model.forms = forms_of_checkpoint(made_up, dtype);
    return model;
  }
  const bool weights = std::filesystem::is_regular_file(dir) ||
                       std::filesystem::exists(dir + "/model.safetensors") ||
                       std::filesystem::exists(dir + "/model.safetensors.index.json");
  if (!weights) {
    const std::string form = describe(model.config.quantization);
    model.stored = "as config.json says, " + (form.empty() ? std::string(dtype_name(dtype)) : form);
    return model;
  }
  const std::shared_ptr<const Checkpoint> checkpoint = Checkpoint::open(dir);
  check_all_known(*checkpoint, model.config);
  const std::string form = checkpoint->quantization();
  model.stored = "as stored" + (form.empty() ? "" : ", " + form);
  model.forms = forms_of_checkpoint(checkpoint, dtype);
  return model;
}

PlanOptions plan_options(const PlanCommandOptions& o, const ModelConfig& config, int gpus) {
  PlanOptions plan;
  plan.quantization = o.quantization;
  plan.ranks = o.tensor_parallel_size > 0 ? o.tensor_parallel_size : gpus;
  plan.dp_attention = o.dp_attention;
  plan.dtype = parse_dtype(o.dtype, config);
  plan.kv_cache_dtype = o.kv_cache_dtype;
  plan.page_size = o.page_size;
  plan.max_model_len = o.max_model_len;
  plan.max_num_seqs = o.max_num_seqs;
  plan.max_num_batched_tokens = o.max_num_batched_tokens;
  if (o.expert_offload != "off") {
    plan.offload_mode = parse_offload_mode(o.expert_offload);
    plan.experts = ExpertHome::kDisk;
  }
  return plan;
}

}  // namespace

PlanAnswer plan_answer(const PlanCommandOptions& o) {
  if (o.device != "auto" && o.device != "cpu") throw_invalid("--device {}: use auto or cpu", o.device);
  if (o.device == "cpu" && !o.gpus.empty()) throw_invalid("--gpus {}: not with --device cpu", o.gpus);
  const uint64_t host = o.host_memory.empty() ? 0 : parse_size("--host-memory", o.host_memory);
  DeviceChoice choice;
  if (o.gpus.empty()) {
    const MachineInfo machine = machine_info();
    choice.device = cpu_device(machine.cores, host > 0 ? host : machine.memory_bytes);
    choice.count = std::max(o.tensor_parallel_size, 1);
  } else {
    choice = parse_gpus(o.gpus);
  }
  if (choice.device.on_gpu && o.tensor_parallel_size > choice.count) {
    throw_invalid("--tensor-parallel-size {}: --gpus says {}; a rank has a GPU of its own",
                  o.tensor_parallel_size, o.gpus);
  }
  PlannedModel model = find_model(o);
  PlanOptions options = plan_options(o, model.config, choice.count);
  const uint64_t memory = choice.device.on_gpu ? host : choice.device.bytes;
  options.swap_bytes = parse_swap_space(o.swap_space, choice.device.on_gpu, /*to_files=*/false, memory,
                                        options.ranks);

  PlanBudget budget;
  if (choice.device.on_gpu) {
    budget = gpu_budget(choice.device, o.gpu_memory_utilization, options.ranks);
  } else {
    // Pages that leave the KV cache go to the same memory.
    budget = cpu_budget(choice.device.bytes - options.swap_bytes * options.ranks, options.ranks);
  }
  budget.host = host;
  double utilization = o.gpu_memory_utilization;
  if (!o.gpu_memory_limit.empty()) {
    budget.bytes = parse_memory_limit(o.gpu_memory_limit, choice.device.bytes, choice.device.name);
    budget.driver = 0;
    utilization = 0;
  }

  Planner planner(model.config, model.forms, choice.device);
  PlanReport report{.model = model.name,
                    .weights = options.quantization == "none"
                                   ? model.stored
                                   : "in " + options.quantization,
                    .gpus = choice.count,
                    .utilization = utilization,
                    .plan = planner.plan(options, budget)};
  if (!report.plan.fits) {
    report.advice = advise(planner, {.options = options,
                                     .budget = budget,
                                     .gpus = choice.count,
                                     .utilization = o.gpu_memory_utilization});
  }
  return {report.plan.fits, o.json ? plan_json(planner, report) : plan_text(planner, report)};
}

int run_plan(const PlanCommandOptions& options) {
  const PlanAnswer answer = plan_answer(options);
  fmt::print("{}", answer.text);
  return answer.fits ? 0 : 1;
}

}  // namespace shoal
