# frozen_string_literal: true

require 'json'
require 'open3'

Puppet::Type.type(:netspace).provide(:command) do
  desc 'Runs python -m netspace plan and apply.'

  # Tells whether an apply would change anything. What it could not do is told by the apply, which does the rest, or
  # here if there will be none.
  def different?
    found = run('plan')
    refuse(found) if resource.noop?
    !(found['steps'].empty? && found['problems'].empty?)
  end

  def apply
    refuse(run('apply'))
  end

  # The steps that were made, or would be.
  def steps
    @steps.map { |step| step.values_at('action', 'kind', 'name').join(' ') }.join(', ')
  end

  private

  # Returns the JSON that a command prints.
  def run(command)
    declared = JSON.generate('netspace' => resource[:declaration])
    arguments = ['-m', 'netspace', '--instance', resource[:instance], command, '-', '--json']
    out, err, status = Open3.capture3(resource[:python], *arguments, stdin_data: declared)
    found = JSON.parse(out)
    found['notes'].each { |note| Puppet.notice("netspace: #{note}") }
    @steps = found['steps'].select { |step| step['error'].empty? }
    found
  rescue JSON::ParserError
    raise Puppet::Error, "#{resource[:python]} -m netspace #{command}: #{status}: #{err.strip}"
  rescue SystemCallError => e
    raise Puppet::Error, "#{e.message}; name the Python that has netspace as python"
  end

  def refuse(found)
    problems = found['problems'].map { |problem| "#{problem['path']}: #{problem['message']}" }
    raise Puppet::Error, problems.join("\n") unless problems.empty?
  end
end
